/* A library for LD_PRELOAD: one in FLAKY_ONE_IN reads, writes, flushes and renames below FLAKY_DIR fails with
   EIO, and is noted in FLAKY_LOG. faults.py compiles it:
   cc -shared -fPIC -O1 -o flaky_disk.so flaky_disk.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/types.h>
#include <unistd.h>

static int chosen(void) {
  const char *one_in = getenv("FLAKY_ONE_IN");
  unsigned number;
  if (!one_in || atoi(one_in) < 1 || getrandom(&number, sizeof number, 0) < 0) return 0;
  return number % (unsigned)atoi(one_in) == 0;
}

static int is_below(const char *path) {
  const char *folder = getenv("FLAKY_DIR");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_open_below(int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return is_below(path);
}

static int fails(const char *call) {
  if (!chosen()) return 0;
  const char *log = getenv("FLAKY_LOG");
  int file = log ? open(log, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1; /* not below FLAKY_DIR */
  if (file >= 0) {
    dprintf(file, "%s\n", call);
    close(file);
  }
  errno = EIO;
  return 1;
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define OF_FILE(type, name, parameters, arguments) \
  type name parameters { NEXT(name); return is_open_below(file) && fails(#name) ? -1 : next arguments; }

OF_FILE(ssize_t, read, (int file, void *data, size_t size), (file, data, size))
OF_FILE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
OF_FILE(ssize_t, pread, (int file, void *data, size_t size, off_t at), (file, data, size, at))
OF_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
OF_FILE(ssize_t, pread64, (int file, void *data, size_t size, off64_t at), (file, data, size, at))
OF_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
OF_FILE(int, fsync, (int file), (file))

int rename(const char *from, const char *to) {
  NEXT(rename);
  return is_below(from) && fails("rename") ? -1 : next(from, to);
}
