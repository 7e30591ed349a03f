/* Preloaded into a process: ends it with SIGKILL just before its call number CRASH_AT (from 1) that changes a file or
 * folder; half of a write is done first. With CRASH_LOG every such call is one line in that file. Only calls on regular
 * files and folders count. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long calls;
static long crash_at = -1;
static int log_file = -1;

__attribute__((constructor)) static void start(void) {
    const char *at = getenv("CRASH_AT"), *path = getenv("CRASH_LOG");
    if (at) crash_at = atol(at);
    if (path) log_file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* Whether the process is to end at this call. */
static int is_last(const char *call, const char *path) {
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (log_file >= 0) {
        char line[600];
        int length = snprintf(line, sizeof line, "%s %.500s\n", call, path);
        syscall(SYS_write, log_file, line, length);
    }
    return number == crash_at;
}

static void point(const char *call, const char *path) {
    if (is_last(call, path)) kill(getpid(), SIGKILL);
}

static int is_on_disk(int file) {
    struct stat status;
    return fstat(file, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

ssize_t write(int file, const void *bytes, size_t count) {
    if (is_on_disk(file) && is_last("write", "")) {
        syscall(SYS_write, file, bytes, count / 2);
        kill(getpid(), SIGKILL);
    }
    return syscall(SYS_write, file, bytes, count);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FILE(name, ...)                                                                                                       \
    if (is_on_disk(file)) point(#name, "");                                                                                      \
    return NEXT(name)(__VA_ARGS__)
#define ON_PATH(name, ...)                                                                                                       \
    point(#name, path);                                                                                                          \
    return NEXT(name)(__VA_ARGS__)

int fsync(int file) { ON_FILE(fsync, file); }
int fdatasync(int file) { ON_FILE(fdatasync, file); }
int ftruncate(int file, off_t length) { ON_FILE(ftruncate, file, length); }
int ftruncate64(int file, off64_t length) { ON_FILE(ftruncate64, file, length); }
int rename(const char *path, const char *to) { ON_PATH(rename, path, to); }
int unlink(const char *path) { ON_PATH(unlink, path); }
int rmdir(const char *path) { ON_PATH(rmdir, path); }
int mkdir(const char *path, mode_t mode) { ON_PATH(mkdir, path, mode); }
int unlinkat(int folder, const char *path, int flags) { ON_PATH(unlinkat, folder, path, flags); }

#define OPEN(name)                                                                                                               \
    int name(const char *path, int flags, ...) {                                                                                 \
        va_list rest;                                                                                                            \
        va_start(rest, flags);                                                                                                   \
        int mode = flags & O_CREAT ? va_arg(rest, int) : 0;                                                                      \
        va_end(rest);                                                                                                            \
        if (flags & O_CREAT) point("create", path);                                                                              \
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode);                                                                 \
    }
OPEN(open)
OPEN(open64)
