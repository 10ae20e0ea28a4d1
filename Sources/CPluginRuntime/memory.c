// The plugin's memory. The plugin lives for some milliseconds and needs little, and on a virtual machine each page that a program
// touches for the first time costs several microseconds. musl's malloc, made for programs that run for long, asks the kernel for a
// mapping for each size of blocks and gives it back at once. Here blocks of all sizes lie side by side, and the one that was
// freed last of a class of sizes is used again for the next that fits into it.
//
// These names take the place of the C library's, which keeps a few blocks of its own besides. No locks: the plugin has one
// thread. Tests/Plugin/memory.c tests this.
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

// Before each block; as large as the alignment of blocks.
struct block {
    // What the caller may use, bytes; a multiple of the alignment.
    size_t size;
    // The next one that is free, of a free block.
    struct block *next;
};

enum {
    // Bytes.
    alignment = sizeof(struct block),
    // Larger blocks are mappings of their own, and are given back.
    largest_shared = 64 << 10,
    // How much is asked of the kernel at a time, when `first` is used up.
    piece = 1 << 20,
    // One for each power of two from the alignment to `largest_shared`.
    classes = 13
};
_Static_assert(alignment == 16, "as malloc promises on 64-bit machines");
_Static_assert(alignment << (classes - 1) == largest_shared, "the last class");

// Only pages that are used are backed by memory.
static _Alignas(16) unsigned char first[256 << 10];
static unsigned char *unused = first, *end = first + sizeof first;
static struct block *freed[classes];

static int class_of(size_t size) {
    int class = 0;
    for (size_t room = alignment; room < size; room <<= 1) class++;
    return class;
}

static unsigned char *map(size_t size) {
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

// Rounded up to the alignment; 0: there is no such size.
static size_t rounded(size_t size) {
    if (size > PTRDIFF_MAX - piece) return 0;
    return size < alignment ? alignment : (size + alignment - 1) & ~(size_t)(alignment - 1);
}

void *malloc(size_t wanted) {
    size_t size = rounded(wanted);
    struct block *block = NULL;
    if (size > largest_shared) {
        block = (struct block *)map(sizeof *block + size);
    } else if (size) {
        struct block **same = &freed[class_of(size)];
        if (*same && (*same)->size >= size) {
            block = *same;
            *same = block->next;
            return block + 1;
        }
        if ((size_t)(end - unused) < sizeof *block + size) {
            unsigned char *more = map(piece);
            if (more) {
                unused = more;
                end = more + piece;
            }
        }
        if ((size_t)(end - unused) >= sizeof *block + size) {
            block = (struct block *)unused;
            unused += sizeof *block + size;
        }
    }
    if (!block) {
        errno = ENOMEM;
        return NULL;
    }
    block->size = size;
    return block + 1;
}

static int is_last(struct block *block) { return (unsigned char *)(block + 1) + block->size == unused; }

void free(void *pointer) {
    if (!pointer) return;
    struct block *block = (struct block *)pointer - 1;
    if (block->size > largest_shared) {
        int before = errno;
        munmap(block, sizeof *block + block->size);
        errno = before;
    } else if (is_last(block)) {
        unused = (unsigned char *)block;
    } else {
        struct block **same = &freed[class_of(block->size)];
        block->next = *same;
        *same = block;
    }
}

void *calloc(size_t count, size_t each) {
    size_t size;
    if (__builtin_mul_overflow(count, each, &size)) {
        errno = ENOMEM;
        return NULL;
    }
    void *new = malloc(size);
    return new ? memset(new, 0, size) : NULL;
}

void *realloc(void *pointer, size_t wanted) {
    if (!pointer) return malloc(wanted);
    struct block *block = (struct block *)pointer - 1;
    size_t size = rounded(wanted);
    if (size && size <= block->size) return pointer;
    if (size && size <= largest_shared && is_last(block) && size - block->size <= (size_t)(end - unused)) {
        unused += size - block->size;
        block->size = size;
        return pointer;
    }
    void *new = malloc(wanted);
    if (!new) return NULL;
    memcpy(new, pointer, block->size);
    free(pointer);
    return new;
}

// Nothing here needs more than `malloc` gives.
int posix_memalign(void **place, size_t wanted, size_t size) {
    if (wanted > alignment) return EINVAL;
    void *new = malloc(size);
    if (!new) return ENOMEM;
    *place = new;
    return 0;
}

void *aligned_alloc(size_t wanted, size_t size) {
    void *new = NULL;
    int error = posix_memalign(&new, wanted, size);
    if (error) errno = error;
    return new;
}
