// A library for LD_PRELOAD: files that misbehave, at a moment that a test chooses.
//
//   FAULTY_IO_PATH   part of a path: the calls on such files are watched
//   FAULTY_IO_WHEN   read, populate (of mapped bytes) or write: which calls
//   FAULTY_IO_COUNT  from which of these calls of the process on (1: the first)
//   FAULTY_IO_WHAT   short: half of what is asked for    eintr: every other call is interrupted
//                    EIO, ENOSPC: the call fails so
//                    cut, touch, replace: once, before the call, the file FAULTY_IO_VICTIM loses its second half, is written to at its end,
//                    or gives way to FAULTY_IO_REPLACEMENT
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { most_descriptors = 4096, most_maps = 256 };
static char watched[most_descriptors];
static struct {
  char* begin;
  size_t size;
} maps[most_maps];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char* setting(const char* name) {
  const char* value = getenv(name);
  return value ? value : "";
}

static int is_watched(int fd) { return fd >= 0 && fd < most_descriptors && watched[fd]; }

static void change_victim(const char* what) {
  const char* victim = setting("FAULTY_IO_VICTIM");
  struct stat status;
  if (strcmp(what, "replace") == 0) {
    rename(setting("FAULTY_IO_REPLACEMENT"), victim);
  } else if (stat(victim, &status) == 0 && strcmp(what, "cut") == 0) {
    if (truncate(victim, status.st_size / 2) != 0) abort();
  } else {
    const int fd = REAL(open)(victim, O_WRONLY);
    if (fd < 0 || REAL(pwrite)(fd, "\x3c", 1, status.st_size - 1) != 1) abort();
    REAL(close)(fd);
  }
}

/// What is to happen to this call: 0, an error number, or -1 for "short".
static int fault(const char* when) {
  if (strcmp(setting("FAULTY_IO_WHEN"), when) != 0) return 0;
  const char* what = setting("FAULTY_IO_WHAT");
  const char* count = setting("FAULTY_IO_COUNT");
  const long first = *count ? atol(count) : 1;
  pthread_mutex_lock(&lock);
  const long call = ++calls;
  if (call == first && (strcmp(what, "cut") == 0 || strcmp(what, "touch") == 0 || strcmp(what, "replace") == 0)) change_victim(what);
  pthread_mutex_unlock(&lock);
  if (call < first) return 0;
  if (strcmp(what, "short") == 0) return -1;
  if (strcmp(what, "eintr") == 0) return call % 2 ? EINTR : 0;
  if (strcmp(what, "EIO") == 0) return EIO;
  if (strcmp(what, "ENOSPC") == 0) return ENOSPC;
  return 0;
}

static int note(int fd, const char* path) {
  const char* part = setting("FAULTY_IO_PATH");
  if (fd >= 0 && fd < most_descriptors) watched[fd] = path && *part && strstr(path, part) != NULL;
  return fd;
}

static mode_t mode_from(int flags, va_list arguments) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; }

#define OPEN(name)                                    \
  int name(const char* path, int flags, ...) {        \
    va_list arguments;                                \
    va_start(arguments, flags);                       \
    const mode_t mode = mode_from(flags, arguments);  \
    va_end(arguments);                                \
    return note(REAL(name)(path, flags, mode), path); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                          \
  int name(int folder, const char* path, int flags, ...) {    \
    va_list arguments;                                        \
    va_start(arguments, flags);                               \
    const mode_t mode = mode_from(flags, arguments);          \
    va_end(arguments);                                        \
    return note(REAL(name)(folder, path, flags, mode), path); \
  }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
  if (fd >= 0 && fd < most_descriptors) watched[fd] = 0;
  return REAL(close)(fd);
}

/// The size to ask for, or -1 with errno set.
static ssize_t allowed(int fd, const char* when, size_t size) {
  const int answer = is_watched(fd) ? fault(when) : 0;
  if (answer > 0) {
    errno = answer;
    return -1;
  }
  return answer < 0 && size > 1 ? (ssize_t)(size / 2) : (ssize_t)size;
}

ssize_t read(int fd, void* to, size_t size) {
  const ssize_t part = allowed(fd, "read", size);
  return part < 0 ? -1 : REAL(read)(fd, to, (size_t)part);
}
ssize_t pread(int fd, void* to, size_t size, off_t at) {
  const ssize_t part = allowed(fd, "read", size);
  return part < 0 ? -1 : REAL(pread)(fd, to, (size_t)part, at);
}
ssize_t pread64(int fd, void* to, size_t size, off64_t at) {
  const ssize_t part = allowed(fd, "read", size);
  return part < 0 ? -1 : REAL(pread64)(fd, to, (size_t)part, at);
}
ssize_t write(int fd, const void* from, size_t size) {
  const ssize_t part = allowed(fd, "write", size);
  return part < 0 ? -1 : REAL(write)(fd, from, (size_t)part);
}
ssize_t pwrite(int fd, const void* from, size_t size, off_t at) {
  const ssize_t part = allowed(fd, "write", size);
  return part < 0 ? -1 : REAL(pwrite)(fd, from, (size_t)part, at);
}
ssize_t pwrite64(int fd, const void* from, size_t size, off64_t at) {
  const ssize_t part = allowed(fd, "write", size);
  return part < 0 ? -1 : REAL(pwrite64)(fd, from, (size_t)part, at);
}

#define MMAP(name)                                                                       \
  void* name(void* hint, size_t size, int protection, int flags, int fd, off_t offset) { \
    void* const begin = REAL(name)(hint, size, protection, flags, fd, offset);           \
    if (begin == MAP_FAILED || !is_watched(fd)) return begin;                            \
    pthread_mutex_lock(&lock);                                                           \
    for (int i = 0; i < most_maps; ++i) {                                                \
      if (maps[i].size) continue;                                                        \
      maps[i].begin = begin;                                                             \
      maps[i].size = size;                                                               \
      break;                                                                             \
    }                                                                                    \
    pthread_mutex_unlock(&lock);                                                         \
    return begin;                                                                        \
  }
MMAP(mmap)
MMAP(mmap64)

int madvise(void* begin, size_t size, int advice) {
  int of_a_watched_file = 0;
  for (int i = 0; i < most_maps && !of_a_watched_file; ++i) {
    of_a_watched_file = maps[i].size && (char*)begin >= maps[i].begin && (char*)begin < maps[i].begin + maps[i].size;
  }
  if (of_a_watched_file && advice == MADV_POPULATE_READ) {
    const int answer = fault("populate");
    if (answer > 0) {
      errno = answer == EIO ? EFAULT : answer;  // as the kernel says that a page cannot be read
      return -1;
    }
  }
  return REAL(madvise)(begin, size, advice);
}
