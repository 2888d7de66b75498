"""Own code for the CPU's short steps, compiled where there is a C compiler."""
