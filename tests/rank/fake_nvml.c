/* As much of libnvidia-ml.so.1 as pynvml needs for one GPU, whose figures are read from the file $FAKE_NVML:
   lines of `name value`; a name that is missing is not supported by this GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9 };

static int figure(const char *name, unsigned long long *value) {
    char known[64];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int answer = NOT_SUPPORTED;
    while (file && fscanf(file, "%63s %llu", known, value) == 2)
        if (strcmp(known, name) == 0) { answer = OK; break; }
    if (file) fclose(file);
    return answer;
}

static int small(const char *name, unsigned int *value) {
    unsigned long long found = 0;
    int answer = figure(name, &found);
    *value = (unsigned int)found;
    return answer;
}

int nvmlInitWithFlags(unsigned int flags) {
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (!file) return DRIVER_NOT_LOADED;
    fclose(file);
    return OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { return "an error"; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    static int gpu;
    *device = &gpu;
    return strcmp(uuid, "GPU-5ee0") == 0 ? OK : NOT_FOUND;
}
int nvmlDeviceGetClockInfo(void *device, int type, unsigned int *mhz) {
    return small(type == 1 ? "sm_clock_mhz" : type == 2 ? "memory_clock_mhz" : "", mhz);
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    return small(sensor == 0 ? "temperature_c" : "", celsius);
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { return small("power_mw", milliwatts); }
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count) {
    return figure(counter != 0 ? "" : type == 0 ? "ecc_corrected" : "ecc_uncorrected", count);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    return figure("throttle_reasons", reasons);
}
