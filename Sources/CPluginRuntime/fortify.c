// Debian's libjansson.a was compiled for glibc, with checks of sizes that only glibc has functions for.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int __vsnprintf_chk(char *to, size_t most, int flags, size_t room, const char *format, va_list list) {
    if (most > room) abort();
    return vsnprintf(to, most, format, list);
}

int __snprintf_chk(char *to, size_t most, int flags, size_t room, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int length = __vsnprintf_chk(to, most, flags, room, format, list);
    va_end(list);
    return length;
}

char *__strncpy_chk(char *to, const char *from, size_t length, size_t room) {
    if (length > room) abort();
    return strncpy(to, from, length);
}
