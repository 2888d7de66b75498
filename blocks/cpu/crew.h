/* Threads that help with loops. Who runs a loop works at it as well, and waits only for what a helper has begun: one
 * that the system lets wait, because other programs have its processor, holds nobody up, and comes in when it can. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

enum { SPINS = 1 << 12 }; /* looks at what may change at once, before a thread sleeps or lets others run */
#define LEFT 0xffffffffull

typedef void Work(const void *given, int64_t index, int64_t who); /* who: a number under `threads`, of this thread */

static struct {
    _Alignas(128) _Atomic uint64_t open; /* the loop's number, and in the low half how many indices nobody has taken */
    _Alignas(128) _Atomic int64_t done;
    _Alignas(128) _Atomic int64_t threads, asleep; /* that may take part in this loop; helpers that sleep */
    Work *work;                                    /* these do not change while an index is taken and not done */
    const void *given;
    int64_t count;
    pthread_mutex_t led, sleeping;
    pthread_cond_t woken;
    int64_t helpers;
} crew = {.led = PTHREAD_MUTEX_INITIALIZER, .sleeping = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};

static inline void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* Does what nobody has taken. An index is taken only in the loop that was looked at: its number is a part of `open`. */
static uint64_t take_part(int64_t who) {
    uint64_t open = atomic_load(&crew.open);
    int64_t done = 0;
    while ((open & LEFT) && who < atomic_load(&crew.threads))
        if (atomic_compare_exchange_weak(&crew.open, &open, open - 1)) {
            crew.work(crew.given, crew.count - (int64_t)(open & LEFT), who);
            done++;
            open = atomic_load(&crew.open);
        }
    if (done) atomic_fetch_add(&crew.done, done);
    return open;
}

static void *help(void *who) {
    for (;;) {
        uint64_t seen = take_part((intptr_t)who);
        for (int i = 0; i < SPINS && atomic_load_explicit(&crew.open, memory_order_relaxed) == seen; i++) rest();
        if (atomic_load(&crew.open) != seen) continue;
        pthread_mutex_lock(&crew.sleeping);
        atomic_fetch_add(&crew.asleep, 1);
        while (atomic_load(&crew.open) == seen) pthread_cond_wait(&crew.woken, &crew.sleeping);
        atomic_fetch_sub(&crew.asleep, 1);
        pthread_mutex_unlock(&crew.sleeping);
    }
    return 0;
}

/* How many threads may run loops until `disband`: as many as asked for, unless others have the helpers. */
static int64_t gather(int64_t threads) {
    if (threads < 2 || pthread_mutex_trylock(&crew.led)) return 1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t thread; crew.helpers < threads - 1; crew.helpers++) {
        if (pthread_create(&thread, 0, help, (void *)(intptr_t)(crew.helpers + 1))) break;
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
    return threads;
}

static void disband(int64_t threads) {
    if (threads > 1) pthread_mutex_unlock(&crew.led);
}

/* work(given, index, who) for every index under count. A helper may miss that it is woken: then it comes later. */
static void each(int64_t threads, int64_t count, Work *work, const void *given) {
    if (threads < 2 || count < 2) {
        for (int64_t i = 0; i < count; i++) work(given, i, 0);
        return;
    }
    crew.work = work, crew.given = given, crew.count = count;
    atomic_store(&crew.done, 0);
    atomic_store(&crew.threads, threads);
    atomic_store(&crew.open, ((atomic_load(&crew.open) >> 32) + 1) << 32 | (uint64_t)count);
    if (atomic_load(&crew.asleep)) pthread_cond_broadcast(&crew.woken);
    take_part(0);
    for (int i = 0; atomic_load(&crew.done) < count; i++)
        if (i < SPINS) rest();
        else sched_yield();
}
