/* A disk that fails on order and remembers what was synced, and a clock that jumps: a library for
 * LD_PRELOAD. tests/recovery/disk.py builds it, writes its rules and reads its journal.
 *
 * DISK_ROOT     the folder that is watched; nothing else is touched
 * DISK_JOURNAL  file to which every change below the root is appended, in order
 * DISK_RULES    file of faults, one a line: OPERATION PATTERN NTH EFFECT once|stays
 *               The first line that has not fired counts; each firing adds a byte to RULES.fired.
 *               `once` goes on to the next line, `stays` holds until the process ends.
 * DISK_CLOCK    file of one int64: nanoseconds that the time of day is off by
 *
 * With a journal no sync reaches the real disk: what is durable is what the journal says.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, SHORT, TORN, ENOSPACE, EIO_, LIE };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_size;
static int journal = -1, rules = -1, fired = -1;
static volatile int64_t *clock_off;

static struct {
  off_t number; /* line; -1: none is left */
  char operation[16], pattern[256];
  int nth, effect, stays, seen, firing;
} rule = {.number = -1};

/* A change and its record are one to others: to threads, to processes that share the journal, and to
 * whoever locks the journal to kill one of them. */
static void take_turn(void) {
  pthread_mutex_lock(&turn);
  if (journal >= 0) flock(journal, LOCK_EX);
}

static void end_turn(void) {
  if (journal >= 0) flock(journal, LOCK_UN);
  pthread_mutex_unlock(&turn);
}

static int sys_open(const char *path, int flags) {
  return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
}

static off_t fired_count(void) {
  struct stat st;
  return fstat(fired, &st) == 0 ? st.st_size : 0;
}

static void take_rule(off_t number) {
  static const char *names[] = {"none", "short", "torn", "enospc", "eio", "lie"};
  char text[8192], effect[16], lasts[16], *line = text;
  ssize_t size = syscall(SYS_pread64, rules, text, sizeof text - 1, 0L);
  memset(&rule, 0, sizeof rule);
  rule.number = -1;
  text[size < 0 ? 0 : size] = 0;
  for (off_t i = 0; i < number && line; i++) line = strchr(line, '\n') ? strchr(line, '\n') + 1 : 0;
  if (!line || sscanf(line, "%15s %255s %d %15s %15s", rule.operation, rule.pattern, &rule.nth,
                      effect, lasts) != 5)
    return;
  rule.number = number;
  rule.stays = !strcmp(lasts, "stays");
  for (int i = SHORT; i <= LIE; i++)
    if (!strcmp(effect, names[i])) rule.effect = i;
}

/* Reads the environment; again in a fork that has another one. */
void disk_begin(void) {
  const char *path;
  char name[PATH_MAX];
  root = getenv("DISK_ROOT");
  root_size = root ? strlen(root) : 0;
  if ((path = getenv("DISK_JOURNAL"))) journal = sys_open(path, O_WRONLY | O_APPEND | O_CREAT);
  if ((path = getenv("DISK_RULES"))) {
    snprintf(name, sizeof name, "%s.fired", path);
    rules = sys_open(path, O_RDONLY);
    fired = sys_open(name, O_RDWR | O_APPEND | O_CREAT);
    take_rule(fired_count());
  }
  if ((path = getenv("DISK_CLOCK"))) {
    int fd = sys_open(path, O_RDONLY);
    void *at = mmap(0, sizeof *clock_off, PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) clock_off = at;
    close(fd);
  }
}

static const char *inside(const char *full) {
  size_t n = strlen(full);
  if (!root || strncmp(full, root, root_size) || full[root_size] != '/') return 0;
  /* The index of a WAL is memory that happens to have a name. */
  if (n > 4 && !strcmp(full + n - 4, "-shm")) return 0;
  return full + root_size + 1;
}

static const char *of_fd(int fd, char *full) {
  char link[64];
  pthread_once(&once, disk_begin);
  if (!root || fd < 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX - 1);
  if (n <= 0) return 0;
  full[n] = 0;
  /* A directory that is the root itself counts too. */
  if (!strcmp(full, root)) return full + n;
  return inside(full);
}

static const char *of_path(int dirfd, const char *path, char *full) {
  char base[PATH_MAX];
  pthread_once(&once, disk_begin);
  if (!root || !path) return 0;
  if (path[0] == '/') {
    snprintf(full, PATH_MAX, "%s", path);
  } else if (dirfd == AT_FDCWD) {
    if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    if (snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    if (n <= 0) return 0;
    base[n] = 0;
    if (snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
  }
  return inside(full);
}

/* One record: op, length of the paths, inode, number, length of data; paths; data. */
static void note(char op, const char *a, const char *b, uint64_t inode, uint64_t number,
                 const void *data, uint64_t size) {
  struct __attribute__((packed)) {
    char op;
    uint16_t a, b;
    uint64_t inode, number, size;
  } head = {op, a ? strlen(a) : 0, b ? strlen(b) : 0, inode, number, size};
  struct iovec parts[] = {{&head, sizeof head}, {(void *)a, head.a}, {(void *)b, head.b},
                          {(void *)data, size}};
  if (journal >= 0) syscall(SYS_writev, journal, parts, 4);
}

static uint64_t inode_of(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/* The effect on this call, NONE mostly. Call it in turn. */
static int fault(const char *operation, const char *path) {
  if (rule.number < 0) return NONE;
  if (!rule.firing && fired_count() > rule.number) take_rule(fired_count());
  if (rule.number < 0 || strcmp(rule.operation, operation)) return NONE;
  if (fnmatch(rule.pattern, path, 0)) return NONE;
  if (!rule.firing && ++rule.seen < rule.nth) return NONE;
  int effect = rule.effect;
  if (!rule.firing) syscall(SYS_write, fired, "x", 1L);
  if (rule.stays)
    rule.firing = 1;
  else
    take_rule(rule.number + 1);
  return effect;
}

static ssize_t refuse(int effect) {
  errno = effect == ENOSPACE ? ENOSPC : EIO;
  return -1;
}

/* writes */

static ssize_t written(int fd, const struct iovec *parts, int count, off_t at) {
  char full[PATH_MAX];
  const char *path = of_fd(fd, full);
  struct iovec mine[64];
  ssize_t done, size = 0;
  if (!path || count > 64)
    return at < 0 ? syscall(SYS_writev, fd, parts, count)
                  : syscall(SYS_pwritev, fd, parts, count, at, 0L);
  for (int i = 0; i < count; i++) size += parts[i].iov_len;
  take_turn();
  int effect = fault("write", path);
  if (effect == ENOSPACE || effect == EIO_) {
    end_turn();
    return refuse(effect);
  }
  memcpy(mine, parts, count * sizeof *parts);
  if (effect == SHORT || effect == TORN) {
    ssize_t left = size = size > 1 ? size / 2 : size;
    for (int i = 0; i < count; left -= mine[i++].iov_len)
      if ((ssize_t)mine[i].iov_len > left) mine[i].iov_len = left;
  }
  done = at < 0 ? syscall(SYS_writev, fd, mine, count)
                : syscall(SYS_pwritev, fd, mine, count, at, 0L);
  if (done > 0 && journal >= 0) {
    int kept = errno;
    uint64_t inode = inode_of(fd);
    off_t from = at < 0 ? syscall(SYS_lseek, fd, 0L, SEEK_CUR) - done : at;
    ssize_t left = done;
    for (int i = 0; i < count && left > 0; i++) {
      ssize_t n = (ssize_t)mine[i].iov_len < left ? (ssize_t)mine[i].iov_len : left;
      note('W', 0, 0, inode, from, mine[i].iov_base, n);
      from += n;
      left -= n;
    }
    errno = kept;
  }
  end_turn();
  return effect == TORN ? refuse(EIO_) : done;
}

static ssize_t written_one(int fd, const void *data, size_t size, off_t at) {
  struct iovec part = {(void *)data, size};
  return written(fd, &part, 1, at);
}

ssize_t write(int fd, const void *data, size_t n) { return written_one(fd, data, n, -1); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
  return written_one(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
  return written_one(fd, data, n, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) { return written(fd, parts, n, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
  return written(fd, parts, n, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) {
  return written(fd, parts, n, at);
}

static int truncated(int fd, off_t size) {
  char full[PATH_MAX];
  const char *path = of_fd(fd, full);
  if (!path) return (int)syscall(SYS_ftruncate, fd, size);
  take_turn();
  int effect = fault("truncate", path), done;
  if (effect) {
    end_turn();
    return (int)refuse(effect);
  }
  done = (int)syscall(SYS_ftruncate, fd, size);
  if (done == 0) note('T', 0, 0, inode_of(fd), size, 0, 0);
  end_turn();
  return done;
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

/* syncs */

/* The C library's own streams write past these hooks: all bytes of a file but SQLite's. */
static void note_whole(int fd, const struct stat *st) {
  char *data = malloc(st->st_size ? st->st_size : 1);
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  int mine = sys_open(link, O_RDONLY);
  ssize_t n = syscall(SYS_pread64, mine, data, st->st_size, 0L);
  note('H', 0, 0, st->st_ino, 0, data, n < 0 ? 0 : n);
  close(mine);
  free(data);
}

static int synced(int fd, int number) {
  char full[PATH_MAX];
  const char *path = of_fd(fd, full);
  struct stat st;
  if (!path || fstat(fd, &st)) return (int)syscall(number, fd);
  take_turn();
  int effect = fault("fsync", path), done = 0;
  int directory = S_ISDIR(st.st_mode);
  if (effect == LIE) {
    done = 0;
  } else if (effect) {
    note('F', directory ? path : 0, 0, st.st_ino, 0, 0, 0);
    done = (int)refuse(effect);
  } else if (journal < 0) {
    done = (int)syscall(number, fd);
  } else if (directory) {
    note('D', path, 0, 0, 0, 0, 0);
  } else {
    if (!strstr(path, ".db")) note_whole(fd, &st);
    note('S', 0, 0, st.st_ino, 0, 0, 0);
  }
  end_turn();
  return done;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* names */

static int opened(int dirfd, const char *given, int flags, mode_t mode) {
  char full[PATH_MAX];
  const char *path = of_path(dirfd, given, full);
  struct stat st;
  if (!path) return (int)syscall(SYS_openat, dirfd, given, flags, mode);
  take_turn();
  int effect = fault("open", path);
  if (effect) {
    end_turn();
    return (int)refuse(effect);
  }
  int there = fstatat(AT_FDCWD, full, &st, 0) == 0;
  int fd = (int)syscall(SYS_openat, dirfd, given, flags, mode);
  if (fd >= 0 && (flags & O_CREAT) && !there) note('C', path, 0, inode_of(fd), 0, 0, 0);
  if (fd >= 0 && (flags & O_TRUNC) && there) note('T', 0, 0, st.st_ino, 0, 0, 0);
  end_turn();
  return fd;
}

#define MODE(flags)                                   \
  mode_t mode = 0;                                    \
  if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list more;                                     \
    va_start(more, flags);                            \
    mode = va_arg(more, mode_t);                      \
    va_end(more);                                     \
  }

int open(const char *path, int flags, ...) {
  MODE(flags)
  return opened(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE(flags)
  return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int dirfd, const char *path, int flags, ...) {
  MODE(flags)
  return opened(dirfd, path, flags, mode);
}
int openat64(int dirfd, const char *path, int flags, ...) {
  MODE(flags)
  return opened(dirfd, path, flags | O_LARGEFILE, mode);
}
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) {
  return opened(AT_FDCWD, path, flags | O_LARGEFILE, 0);
}
int creat(const char *path, mode_t mode) {
  return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

static int renamed(int from, const char *a, int to, const char *b) {
  char full_a[PATH_MAX], full_b[PATH_MAX];
  const char *before = of_path(from, a, full_a), *after = of_path(to, b, full_b);
  take_turn();
  int done = (int)syscall(SYS_renameat2, from, a, to, b, 0);
  if (done == 0 && before && after) note('R', before, after, 0, 0, 0, 0);
  end_turn();
  return done;
}

int rename(const char *a, const char *b) { return renamed(AT_FDCWD, a, AT_FDCWD, b); }
int renameat(int from, const char *a, int to, const char *b) { return renamed(from, a, to, b); }

static int unlinked(int dirfd, const char *given, int flags) {
  char full[PATH_MAX];
  const char *path = of_path(dirfd, given, full);
  take_turn();
  int done = (int)syscall(SYS_unlinkat, dirfd, given, flags);
  if (done == 0 && path) note('U', path, 0, 0, 0, 0, 0);
  end_turn();
  return done;
}

int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dirfd, const char *path, int flags) { return unlinked(dirfd, path, flags); }

static int made(int dirfd, const char *given, mode_t mode) {
  char full[PATH_MAX];
  const char *path = of_path(dirfd, given, full);
  take_turn();
  int done = (int)syscall(SYS_mkdirat, dirfd, given, mode);
  if (done == 0 && path) note('M', path, 0, 0, 0, 0, 0);
  end_turn();
  return done;
}

int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char *path, mode_t mode) { return made(dirfd, path, mode); }

void _exit(int status) {
  take_turn(); /* the other threads die here, not between a change and its record */
  syscall(SYS_exit_group, status);
  __builtin_unreachable();
}

/* reads */

static ssize_t read_(int fd, void *data, size_t size, off_t at) {
  char full[PATH_MAX];
  if (rule.number >= 0 && rule.operation[0] == 'r') {
    const char *path = of_fd(fd, full);
    take_turn();
    int effect = path ? fault("read", path) : NONE;
    end_turn();
    if (effect) return refuse(effect);
  }
  return at < 0 ? syscall(SYS_read, fd, data, size) : syscall(SYS_pread64, fd, data, size, at);
}

ssize_t read(int fd, void *data, size_t n) { return read_(fd, data, n, -1); }
ssize_t pread(int fd, void *data, size_t n, off_t at) { return read_(fd, data, n, at); }
ssize_t pread64(int fd, void *data, size_t n, off64_t at) { return read_(fd, data, n, at); }
ssize_t __read_chk(int fd, void *data, size_t n, size_t room) {
  (void)room;
  return read_(fd, data, n, -1);
}
ssize_t __pread_chk(int fd, void *data, size_t n, off_t at, size_t room) {
  (void)room;
  return read_(fd, data, n, at);
}
ssize_t __pread64_chk(int fd, void *data, size_t n, off64_t at, size_t room) {
  (void)room;
  return read_(fd, data, n, at);
}

/* the time of day */

int clock_gettime(clockid_t id, struct timespec *at) {
  int done = (int)syscall(SYS_clock_gettime, id, at);
  if (done == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
    pthread_once(&once, disk_begin);
    if (clock_off) {
      int64_t ns = at->tv_sec * 1000000000LL + at->tv_nsec + *clock_off;
      at->tv_sec = ns / 1000000000LL;
      at->tv_nsec = ns % 1000000000LL;
    }
  }
  return done;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
