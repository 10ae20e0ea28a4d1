// The system's libjansson.a was compiled for glibc, and calls functions that only glibc has: with checks of sizes, and with
// glibc 2.38 and later those of C23.
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

// By this name, because newer headers of glibc would make strtoll the function itself.
extern long long c_strtoll(const char *text, char **end, int base) __asm__("strtoll");
long long __isoc23_strtoll(const char *text, char **end, int base) { return c_strtoll(text, end, base); }

char *__strncpy_chk(char *to, const char *from, size_t length, size_t room) {
    if (length > room) abort();
    return strncpy(to, from, length);
}
