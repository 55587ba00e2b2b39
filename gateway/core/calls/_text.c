/* The most tokens that the strings of a JSON body can have, by the first merges of a tokenizer.

   text_bound.py is the definition: what a piece is, and why this is never less than the tokenizer counts. A test
   compares. `load(number, ids, left, right)` takes a tokenizer's table, `classify(kinds)` the kinds of characters,
   and `bound(body, number, rare)` counts. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define TOKENIZERS 2
#define O200K 0
#define SLOTS (1 << 15)
#define EMPTY UINT32_MAX
#define NO_RANK UINT16_MAX
#define REMEMBERED (1 << 12) /* short pieces whose tokens are known */
#define REMEMBERED_BYTES 15
#define PIECE_BYTES_MAX 4096 /* a longer piece has a token a byte */
#define PLACE_BITS 12
#define KINDS 0x32000        /* characters behind these are marks or none of the kinds */

typedef unsigned char byte;
typedef enum { OTHER, UPPER, LOWER, BOTH, MARK, NUMBER, SPACE, LINE_END } Kind; /* as text_bound.py says them */
#define IS(kind, set) ((1u << (kind)) & (set))
enum {
    LETTERS = 1u << UPPER | 1u << LOWER | 1u << BOTH, SPACES = 1u << SPACE | 1u << LINE_END,
    HEADS = 1u << UPPER | 1u << BOTH | 1u << MARK, TAILS = 1u << LOWER | 1u << BOTH | 1u << MARK,
    NO_PREFIX = LETTERS | 1u << NUMBER | 1u << LINE_END, NO_SIGNS = LETTERS | 1u << NUMBER | SPACES,
};

typedef struct {
    uint32_t pair;
    uint16_t rank;
} Slot;

static struct {
    byte ids[256];
    Slot slots[SLOTS];
    int loaded;
} tables[TOKENIZERS];
static struct {
    uint64_t head, tail; /* a piece, with zeros and its size behind it */
    uint32_t tokens;
} remembered[TOKENIZERS][REMEMBERED];
static byte kinds[KINDS];
static int classified;

static inline uint32_t slot_of(uint32_t pair) { return (pair * 0x9E3779B1u) >> 17; }

static inline uint16_t rank_of(const Slot *slots, uint16_t left, uint16_t right)
{
    uint32_t pair = (uint32_t)left << 16 | right, at = slot_of(pair);
    while (slots[at].pair != pair) {
        if (slots[at].pair == EMPTY)
            return NO_RANK;
        at = (at + 1) % SLOTS;
    }
    return slots[at].rank;
}

/* The kind of the character at `at`, and its size in bytes. */
static inline Kind kind_at(const byte *at, const byte *end, int *size)
{
    uint32_t c = *at;
    int more = c < 0xC0 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
    *size = 1;
    if (c < 0x80)
        return (Kind)kinds[c];
    if (more == 0 || end - at <= more)
        return OTHER;
    c &= 0x3Fu >> more;
    for (int one = 1; one <= more; one++)
        c = c << 6 | (at[one] & 0x3F);
    *size = 1 + more;
    if (c < KINDS)
        return (Kind)kinds[c];
    return c >= 0xE0100 && c <= 0xE01EF ? MARK : OTHER;
}

/* The end of the run of characters of these kinds, or not of these (`in` 0). */
static inline const byte *run_end(const byte *at, const byte *end, unsigned set, int in)
{
    int size;
    while (at < end && !IS(kind_at(at, end, &size), set) == !in)
        at += size;
    return at;
}

/* Where 's, 't, 're and their like end, `at` where there are none. */
static const byte *contraction_end(const byte *at, const byte *end)
{
    if (end - at < 2 || *at != '\'')
        return at;
    byte first = at[1] | 0x20, second = end - at > 2 ? at[2] | 0x20 : 0;
    if (first == 's' || first == 'd' || first == 'm' || first == 't')
        return at + 2;
    if (end - at > 2 && at[1] == 0xC5 && at[2] == 0xBF) /* the long s */
        return at + 3;
    if ((first == 'l' && second == 'l') || ((first == 'v' || first == 'r') && second == 'e'))
        return at + 3;
    return at;
}

static const byte *word_end(const byte *at, const byte *end)
{
    const byte *last = NULL;
    int size;
    while (at < end) {
        Kind kind = kind_at(at, end, &size);
        if (!IS(kind, HEADS))
            break;
        at += size;
        if (IS(kind, TAILS))
            last = at;
    }
    const byte *tail = run_end(at, end, TAILS, 1);
    if (tail > at)
        return contraction_end(tail, end);
    return last == NULL ? NULL : contraction_end(last, end);
}

static const byte *spaces_end(const byte *at, const byte *end, int is_o200k)
{
    const byte *last = at, *behind_line = NULL, *from = at;
    int size;
    while (at < end) {
        Kind kind = kind_at(at, end, &size);
        if (!IS(kind, SPACES))
            break;
        last = at;
        at += size;
        if (kind == LINE_END)
            behind_line = at;
    }
    if (at == end && !is_o200k)
        return at;
    if (behind_line != NULL)
        return behind_line;
    return at == end || last == from ? at : last;
}

/* Where the piece that begins at `at` ends. */
static const byte *piece_end(const byte *at, const byte *end, int is_o200k)
{
    const byte *found, *from;
    int size;
    if (!is_o200k && (found = contraction_end(at, end)) > at)
        return found;
    Kind kind = kind_at(at, end, &size);
    const byte *behind = IS(kind, NO_PREFIX) ? NULL : at + size;
    if (is_o200k) {
        if (behind != NULL && (found = word_end(behind, end)) != NULL)
            return found;
        if ((found = word_end(at, end)) != NULL)
            return found;
        from = behind == NULL ? at : behind;
        if ((found = run_end(from, end, HEADS, 1)) > from)
            return contraction_end(found, end);
    } else {
        from = behind == NULL ? at : behind;
        if ((found = run_end(from, end, LETTERS, 1)) > from)
            return found;
    }
    if (kind == NUMBER) {
        for (int count = 0; count < 3 && at < end && kind_at(at, end, &size) == NUMBER; count++)
            at += size;
        return at;
    }
    from = *at == ' ' ? at + 1 : at;
    if ((found = run_end(from, end, NO_SIGNS, 0)) > from) {
        while (found < end && (*found == '\r' || *found == '\n' || (is_o200k && *found == '/')))
            found++;
        return found;
    }
    return spaces_end(at, end, is_o200k);
}

static void push(uint32_t *heap, int *count, uint32_t one)
{
    int at = (*count)++;
    while (at > 0 && heap[(at - 1) / 2] > one) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = one;
}

static uint32_t pop(uint32_t *heap, int *count)
{
    uint32_t first = heap[0], last = heap[--*count];
    int at = 0, child;
    while ((child = 2 * at + 1) < *count) {
        if (child + 1 < *count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= last)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

static int long_piece_tokens(const byte *at, int size, const byte *known, const Slot *slots)
{
    uint16_t ids[PIECE_BYTES_MAX + 1], ranks[PIECE_BYTES_MAX + 1], next[PIECE_BYTES_MAX + 1], before[PIECE_BYTES_MAX + 1];
    uint32_t heap[3 * PIECE_BYTES_MAX];
    int count = 0, left = size;
    for (int one = 0; one < size; one++) {
        ids[one] = known[at[one]];
        next[one] = (uint16_t)(one + 1);
        before[one] = (uint16_t)(one - 1);
    }
    for (int one = 0; one < size; one++) {
        ranks[one] = one + 1 < size ? rank_of(slots, ids[one], ids[one + 1]) : NO_RANK;
        if (ranks[one] != NO_RANK)
            push(heap, &count, (uint32_t)ranks[one] << PLACE_BITS | (uint32_t)one);
    }
    while (count > 0) {
        uint32_t first = pop(heap, &count);
        int one = first & (PIECE_BYTES_MAX - 1), other, touched[2];
        if (ranks[one] != first >> PLACE_BITS)
            continue;
        other = next[one];
        ids[one] = ranks[one];
        ranks[other] = NO_RANK;
        next[one] = next[other];
        if (next[other] < size)
            before[next[other]] = (uint16_t)one;
        left--;
        touched[0] = one, touched[1] = one > 0 ? before[one] : -1;
        for (int which = 0; which < 2; which++) {
            int place = touched[which];
            if (place < 0)
                continue;
            ranks[place] = next[place] < size ? rank_of(slots, ids[place], ids[next[place]]) : NO_RANK;
            if (ranks[place] != NO_RANK)
                push(heap, &count, (uint32_t)ranks[place] << PLACE_BITS | (uint32_t)place);
        }
    }
    return left;
}

static int piece_tokens(const byte *at, int size, const byte *known, const Slot *slots)
{
    enum { SHORT = 24 };
    uint16_t ids[SHORT], ranks[SHORT];
    if (size > SHORT)
        return size > PIECE_BYTES_MAX ? size : long_piece_tokens(at, size, known, slots);
    for (int one = 0; one < size; one++)
        ids[one] = known[at[one]];
    for (int one = 0; one + 1 < size; one++)
        ranks[one] = rank_of(slots, ids[one], ids[one + 1]);
    while (size > 1) {
        int best = 0;
        for (int one = 1; one + 1 < size; one++)
            best = ranks[one] < ranks[best] ? one : best;
        if (ranks[best] == NO_RANK)
            break;
        ids[best] = ranks[best];
        size--;
        for (int one = best + 1; one < size; one++) {
            ids[one] = ids[one + 1];
            ranks[one - 1] = ranks[one];
        }
        if (best > 0)
            ranks[best - 1] = rank_of(slots, ids[best - 1], ids[best]);
        if (best + 1 < size)
            ranks[best] = rank_of(slots, ids[best], ids[best + 1]);
    }
    return size;
}

/* The tokens of a piece, which is looked up first: most words of a text come again. */
static inline int known_piece_tokens(const byte *at, int size, int number)
{
    if (size > REMEMBERED_BYTES)
        return piece_tokens(at, size, tables[number].ids, tables[number].slots);
    uint64_t halves[2] = {0, 0};
    for (int one = 0; one < size; one++)
        halves[one >> 3] |= (uint64_t)at[one] << (one & 7) * 8;
    halves[1] |= (uint64_t)size << 56;
    uint64_t hash = (halves[0] ^ (halves[1] << 31 | halves[1] >> 33)) * 0x9E3779B97F4A7C15u;
    uint32_t slot = (uint32_t)(hash >> 32) % REMEMBERED;
    if (remembered[number][slot].head != halves[0] || remembered[number][slot].tail != halves[1]) {
        remembered[number][slot].tokens =
            (uint32_t)piece_tokens(at, size, tables[number].ids, tables[number].slots);
        remembered[number][slot].head = halves[0];
        remembered[number][slot].tail = halves[1];
    }
    return (int)remembered[number][slot].tokens;
}

static Py_ssize_t text_tokens(const byte *at, const byte *end, int number)
{
    Py_ssize_t found = 0;
    while (at < end) {
        const byte *next = piece_end(at, end, number == O200K);
        found += next - at > PIECE_BYTES_MAX ? next - at : known_piece_tokens(at, (int)(next - at), number);
        at = next;
    }
    return found;
}

/* Write a string without its escapes, and return its size; -1 for an escape of a character that has a letter. */
static Py_ssize_t unescape(const byte *at, const byte *end, byte *to)
{
    static const byte letters[256] = {
        ['"'] = '"', ['\\'] = '\\', ['/'] = '/', ['b'] = '\b', ['f'] = '\f', ['n'] = '\n', ['r'] = '\r', ['t'] = '\t',
    };
    byte *from = to;
    while (at < end) {
        if (*at != '\\') {
            *to++ = *at++;
        } else if (at[1] == 'u') {
            unsigned code = 0;
            if (end - at < 6 || at[2] != '0' || at[3] != '0')
                return -1;
            for (int one = 4; one < 6; one++) {
                byte c = at[one], low = c | 0x20;
                code = code << 4 | (c >= '0' && c <= '9' ? c - '0' + 0u : low >= 'a' && low <= 'f' ? low - 'a' + 10u : 0x100);
            }
            if (code >= 0x80)
                return -1;
            *to++ = (byte)code;
            at += 6;
        } else {
            if (letters[at[1]] == 0)
                return -1;
            *to++ = letters[at[1]];
            at += 2;
        }
    }
    return to - from;
}

static PyObject *bound(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyBytes_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "expected bytes, a number and whether rare strings alone count");
        return NULL;
    }
    long number = PyLong_AsLong(args[1]);
    int rare_alone = args[2] == Py_True;
    if (number < 0 || number >= TOKENIZERS || !tables[number].loaded || !classified) {
        PyErr_SetString(PyExc_ValueError, "no such table");
        return NULL;
    }
    const byte *at = (const byte *)PyBytes_AS_STRING(args[0]), *end = at + PyBytes_GET_SIZE(args[0]);
    byte *plain = NULL;
    Py_ssize_t tokens = 0, covered = 0;
    while (at < end) {
        const byte *from = at;
        at = memchr(at, '"', (size_t)(end - at));
        if (at == NULL)
            at = end;
        if (!rare_alone)
            tokens += at - from, covered += at - from;
        if (at == end)
            break;
        int escapes = 0, rare = 0;
        for (from = ++at; at < end && *at != '"'; at++) {
            rare |= *at & 0x80;
            if (*at == '\\') {
                escapes = 1;
                at++;
            }
        }
        if (at >= end)
            goto unreadable;
        if (rare || !rare_alone) {
            if (!escapes) {
                tokens += text_tokens(from, at, (int)number);
            } else {
                if (plain == NULL && (plain = PyMem_Malloc((size_t)PyBytes_GET_SIZE(args[0]))) == NULL)
                    return PyErr_NoMemory();
                Py_ssize_t size = unescape(from, at, plain);
                if (size < 0)
                    goto unreadable;
                tokens += text_tokens(plain, plain + size, (int)number);
            }
            covered += at - from + 2;
        }
        at++;
    }
    PyMem_Free(plain);
    return Py_BuildValue("(nn)", tokens, covered);
unreadable:
    PyMem_Free(plain);
    Py_RETURN_NONE;
}

static PyObject *load(PyObject *module, PyObject *args)
{
    int number;
    Py_buffer ids, left, right;
    (void)module;
    if (!PyArg_ParseTuple(args, "iy*y*y*", &number, &ids, &left, &right))
        return NULL;
    int fits = number >= 0 && number < TOKENIZERS && ids.len == 256 && left.len == right.len && left.len < SLOTS * 3 / 2;
    if (fits) {
        const uint16_t *lefts = left.buf, *rights = right.buf;
        memcpy(tables[number].ids, ids.buf, 256);
        memset(tables[number].slots, 0xFF, sizeof tables[number].slots);
        memset(remembered[number], 0, sizeof remembered[number]); /* no piece has the size 0 */
        for (Py_ssize_t one = 0; one < left.len / 2; one++) {
            uint32_t pair = (uint32_t)lefts[one] << 16 | rights[one], slot = slot_of(pair);
            while (tables[number].slots[slot].pair != EMPTY)
                slot = (slot + 1) % SLOTS;
            tables[number].slots[slot] = (Slot){pair, (uint16_t)(256 + one)};
        }
        tables[number].loaded = 1;
    }
    PyBuffer_Release(&ids), PyBuffer_Release(&left), PyBuffer_Release(&right);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "no table of this size");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *classify(PyObject *module, PyObject *given)
{
    (void)module;
    if (!PyBytes_CheckExact(given) || PyBytes_GET_SIZE(given) != KINDS) {
        PyErr_SetString(PyExc_ValueError, "expected a byte for each character");
        return NULL;
    }
    memcpy(kinds, PyBytes_AS_STRING(given), KINDS);
    classified = 1;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bound", (PyCFunction)(void (*)(void))bound, METH_FASTCALL, "(tokens at most, bytes that these are of), or None."},
    {"load", load, METH_VARARGS, "Take the table of a tokenizer."},
    {"classify", classify, METH_O, "Take the kind of each character."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_text", "The most tokens of the strings in a body.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__text(void) { return PyModuleDef_Init(&definition); }
