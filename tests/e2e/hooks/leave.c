// A signal handler, for sitecustomize.py.
#include <unistd.h>

void leave(int number) {
    (void)number;
    _exit(0);
}
