/* Appends numbered lines to a file, each made durable before it is told of: `synced NUMBER LONGEST_MS`. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  int file = open(arguments[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
  int told = open(arguments[2], O_WRONLY | O_NOCTTY);
  long longest_ms = 0;
  char line[64];
  for (long number = 1;; number++) {
    int length = snprintf(line, sizeof line, "%08ld\n", number);
    long began = now_ms();
    if (write(file, line, length) != length || fsync(file) != 0) {
      length = snprintf(line, sizeof line, "failed %ld %d\n", number, errno);
      write(told, line, length);
      return 1;
    }
    if (now_ms() - began > longest_ms) longest_ms = now_ms() - began;
    length = snprintf(line, sizeof line, "synced %ld %ld\n", number, longest_ms);
    write(told, line, length);
    usleep(50000);
  }
}
