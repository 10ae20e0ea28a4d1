// The plugin's memory under random calls: blocks are aligned, keep what was written to them, and do not overlap.
// Tests/Plugin/libc.sh compiles and runs it.
#define malloc plugin_malloc
#define free plugin_free
#define calloc plugin_calloc
#define realloc plugin_realloc
#define posix_memalign plugin_posix_memalign
#define aligned_alloc plugin_aligned_alloc
#include "../../Sources/CPluginRuntime/memory.c"
#undef malloc
#undef free
#undef calloc
#undef realloc
#undef posix_memalign
#undef aligned_alloc
#include <stdio.h>
#include <stdlib.h>

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "memory.c: line %d, call %ld: %s\n", __LINE__, calls, #what);                              \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static long calls;
enum { most = 400 };
static struct {
    unsigned char *bytes;
    size_t size;
    unsigned char mark;
} held[most];

// Mostly small, some around the limits.
static size_t some_size(void) {
    static const size_t limits[] = {0, 1, 15, 16, 17, 31, 32, 33, largest_shared - 1, largest_shared, largest_shared + 1, piece - 16, piece, piece + 1};
    switch (rand() % 20) {
    case 0: return limits[rand() % (sizeof limits / sizeof *limits)];
    case 1: return (size_t)(rand() % (3 * largest_shared));
    default: return (size_t)(rand() % 500);
    }
}

static void check(int place) {
    for (size_t i = 0; i < held[place].size; i++) CHECK(held[place].bytes[i] == held[place].mark);
}

static void mark(int place, unsigned char *bytes, size_t size) {
    CHECK(bytes && (uintptr_t)bytes % 16 == 0);
    held[place].bytes = bytes;
    held[place].size = size;
    held[place].mark = (unsigned char)rand();
    memset(bytes, held[place].mark, size);
}

int main(void) {
    srand(10);
    for (calls = 0; calls < 300000; calls++) {
        int place = rand() % most;
        size_t size = some_size();
        void *other = NULL;
        if (!held[place].bytes) {
            switch (rand() % 3) {
            case 0: mark(place, plugin_malloc(size), size); break;
            case 1: {
                unsigned char *zeroes = plugin_calloc(size, 1);
                for (size_t i = 0; i < size; i++) CHECK(zeroes[i] == 0);
                mark(place, zeroes, size);
                break;
            }
            default:
                CHECK(plugin_posix_memalign(&other, 16, size) == 0);
                mark(place, other, size);
            }
        } else if (rand() % 3) {
            check(place);
            plugin_free(held[place].bytes);
            held[place].bytes = NULL;
        } else {
            unsigned char *moved = plugin_realloc(held[place].bytes, size);
            CHECK(moved);
            for (size_t i = 0; i < size && i < held[place].size; i++) CHECK(moved[i] == held[place].mark);
            mark(place, moved, size);
        }
    }
    for (int place = 0; place < most; place++)
        if (held[place].bytes) check(place);
    // What cannot be had is refused, and nothing is touched.
    CHECK(!plugin_malloc(SIZE_MAX) && errno == ENOMEM);
    CHECK(!plugin_malloc(PTRDIFF_MAX) && !plugin_calloc(SIZE_MAX / 2, 3));
    unsigned char *kept = plugin_malloc(10);
    CHECK(!plugin_realloc(kept, SIZE_MAX));
    void *other = NULL;
    CHECK(plugin_posix_memalign(&other, 4096, 1) == EINVAL && !other);
    plugin_free(NULL);
    return 0;
}
