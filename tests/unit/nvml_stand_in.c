/* Answers the calls of NVIDIA's management library that Shoal makes, for machines without such a GPU: what one GPU does
   is read from the file that NVML_STAND_IN names, a line a fact; a limit that is set is written back to it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7 };
typedef struct { unsigned pid; unsigned long long at_us; unsigned sm, memory, encoder, decoder; } Sample;
typedef struct { unsigned pid; unsigned long long bytes; unsigned instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Rates;

static FILE *facts(const char *mode) { return fopen(getenv("NVML_STAND_IN"), mode); }

/* The number after `name` on its own line; `missing` without such a line. */
static long fact(const char *name, long missing) {
  char key[64];
  long figure, found = missing;
  FILE *file = facts("r");
  while (fscanf(file, "%63s %ld", key, &figure) == 2)
    if (!strcmp(key, name)) found = figure;
  fclose(file);
  return found;
}

static int tell(const char *name, unsigned *out) {
  long figure = fact(name, -1);
  if (figure < 0) return NOT_SUPPORTED;
  *out = (unsigned)figure;
  return OK;
}

int nvmlInitWithFlags(unsigned flags) { return OK; }
const char *nvmlErrorString(int status) { return status == NO_PERMISSION ? "Insufficient Permissions" : "Not Supported"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  *device = (void *)1;
  return strcmp(uuid, "GPU-1") ? NOT_FOUND : OK;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { return tell("power", milliwatts); }
int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts) { return tell("limit", milliwatts); }
int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *lowest, unsigned *highest) {
  return tell("lowest", lowest) || tell("highest", highest);
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
  long figure = fact("energy", -1);
  *millijoules = (unsigned long long)figure;
  return figure < 0 ? NOT_SUPPORTED : OK;
}
int nvmlDeviceSetPowerManagementLimit(void *device, unsigned milliwatts) {
  if (!fact("root", 0)) return NO_PERMISSION;
  FILE *file = facts("a");
  fprintf(file, "limit %u\n", milliwatts);
  fclose(file);
  return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, Rates *rates) {
  rates->memory = 0;
  return tell("gpu", &rates->gpu);
}
/* `pid_1 7` and `sm_1 40`: process 7 uses 40 %; one sample of each, at `sampled`. */
int nvmlDeviceGetProcessUtilization(void *device, Sample *samples, unsigned *count, unsigned long long after_us) {
  unsigned there = 0;
  long at_us = fact("sampled", -1);
  char name[16];
  if (at_us < 0) return NOT_SUPPORTED;
  if ((unsigned long long)at_us <= after_us) return NOT_FOUND;
  for (int n = 1; n < 9; n++) {
    snprintf(name, sizeof name, "pid_%d", n);
    long pid = fact(name, -1);
    if (pid < 0) continue;
    snprintf(name, sizeof name, "sm_%d", n);
    if (samples) samples[there] = (Sample){(unsigned)pid, (unsigned long long)at_us, (unsigned)fact(name, 0), 0, 0, 0};
    there++;
  }
  int room = samples && *count >= there;
  *count = there;
  return room ? OK : TOO_SMALL;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
  long pid = fact("computing", -1);
  unsigned there = pid >= 0, room = *count;
  *count = there;
  if (!there) return OK;
  if (room < there || !processes) return TOO_SMALL;
  processes[0] = (Process){(unsigned)pid, 0, 0, 0};
  return OK;
}
