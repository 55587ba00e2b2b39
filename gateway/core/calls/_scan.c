/* One look at the body of a call, before it is decoded: is it written as we would write it?

   `scan(body)` is None unless body is the bytes that msgspec writes of the JSON object in it, all parsers read the
   same in it, and it is within the maxima of call.py. Then it is (flags, files, rare, marks, rest, cuts, left):
   what `names_in` finds in the document, the bytes that are no ASCII, and how many commas, brackets that open and
   backslashes it has. `rest` is the body with U+0001 for each longer text of a message or a tool, whose beginnings
   and ends in the body are in `cuts`, each as four bytes, and `left` are its marks; the first two are None where
   nothing was cut.
   None says nothing of a body but that call.py has to look itself: that is the definition, this is the short way.

   It is linear in time, allocates nothing but the answer, and calls nothing that could fail in between. A bytes
   object ends in NUL, and no JSON text has one: so a byte is looked at only behind one that was not it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) && !defined(WITHOUT_SSE2)
#define SSE2
#include <emmintrin.h>
#endif

/* As call.py says them; a test compares. */
#define OBJECTS_MAX 50000
#define STRINGS_MAX 100000
#define NUMBERS_MAX 320000
#define BACKSLASHES_MAX 500000
#define OUTSIDE_BYTES_MAX (8 << 20)
#define MEDIA_BYTES_MIN 2048
/* Beyond these, call.py looks. Names are told apart by a hash; two of one object that have the same are not. */
#define DEPTH_MAX 64       /* objects and lists inside each other */
#define OBJECT_NAMES_MAX 128 /* of one object */
#define OPEN_NAMES_MAX 1024  /* of all objects around one value */
#define INTEGER_DIGITS_MAX 18
#define DECIMAL_DIGITS_MAX 15 /* so many a double holds exactly, in its shortest form as well */
#define CUTS_MAX 2048         /* further texts stay where they are */
#define CUT_DEPTH_MIN 2       /* of the object: what stands further out may be a field that decides */
#define CUT_BYTES_MIN 32
#define CUT "\\u0001"         /* a body that has this itself is not cut */
#define ZEROS_MAX 4           /* in front of a small decimal's digits: it is written without an exponent */

enum { IDS = 1, CACHES = 2, LONG_CACHES = 4, MEDIA = 8 };
enum { NAMES_FILE = 1, NAMES_LIFETIME = 2, NAMES_TEXT = 3 };

typedef unsigned char byte;

typedef struct {
    uint64_t seen; /* a bit for the hash of each name */
    int first;     /* its names' place in `names` */
    int is_list;
} Level;

typedef struct {
    uint32_t from, to;
} Cut;

typedef struct {
    Py_ssize_t strings, objects, commas, backslashes, rare, inside, files, cut_bytes, cut_backslashes;
    int flags, cuts, has_cut;
    Cut cut[CUTS_MAX]; /* not cleared */
} Found;

static inline int is_lower_hex(byte c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }
static inline int is_digit(byte c) { return c >= '0' && c <= '9'; }
static inline byte folded(byte c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }
static inline int is_behind(byte c) { return c >= 0x80 && c <= 0xBF; }

#ifdef SSE2
/* A bit for each of sixteen bytes that is no plain ASCII: a quote, a backslash, a control or one of UTF-8. */
static inline unsigned marked(const byte *at)
{
    __m128i these = _mm_loadu_si128((const __m128i *)at);
    __m128i quotes = _mm_cmpeq_epi8(these, _mm_set1_epi8('"'));
    __m128i backslashes = _mm_cmpeq_epi8(these, _mm_set1_epi8('\\'));
    __m128i others = _mm_cmplt_epi8(these, _mm_set1_epi8(' ')); /* those of UTF-8 are negative */
    return (unsigned)_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, backslashes), others));
}
#endif

/* The bytes of the letter that begins here, 0 where it is none (RFC 3629). */
static inline int letter(const byte *at)
{
    byte c = at[0];
    if (c >= 0xC2 && c <= 0xDF)
        return is_behind(at[1]) ? 2 : 0;
    if (c >= 0xE0 && c <= 0xEF) {
        if (!is_behind(at[1]) || (c == 0xE0 && at[1] < 0xA0) || (c == 0xED && at[1] > 0x9F))
            return 0;
        return is_behind(at[2]) ? 3 : 0;
    }
    if (c >= 0xF0 && c <= 0xF4) {
        if (!is_behind(at[1]) || (c == 0xF0 && at[1] < 0x90) || (c == 0xF4 && at[1] > 0x8F))
            return 0;
        return is_behind(at[2]) && is_behind(at[3]) ? 4 : 0;
    }
    return 0;
}

/* The bytes of the escape that begins here, 0 where msgspec writes the letter otherwise. */
static inline int escape(const byte *at, Found *found)
{
    static const byte letters[256] = {['"'] = 1, ['\\'] = 1, ['b'] = 1, ['f'] = 1, ['n'] = 1, ['r'] = 1, ['t'] = 1};
    if (letters[at[1]])
        return 2;
    if (at[1] != 'u' || at[2] != '0' || at[3] != '0' || (at[4] != '0' && at[4] != '1')
        || !is_lower_hex(at[5]))
        return 0;
    found->has_cut |= at[4] == '0' && at[5] == '1';
    return at[4] == '0' && strchr("89acd", at[5]) != NULL ? 0 : 6; /* these have a letter */
}

/* The quote that ends the string whose first byte is at `at`, NULL where that is none; a name has no escape. */
static inline const byte *string_end(const byte *at, const byte *end, int is_name, Found *found)
{
    int size;
    for (;;) {
#ifdef SSE2
        while (end - at >= 16) {
            unsigned mask = marked(at);
            int next = 16;
            while (mask) {
                int one = __builtin_ctz(mask);
                if (at[one] != '\\') {
                    at += one;
                    goto stop;
                }
                size = is_name ? 0 : escape(at + one, found);
                if (size == 0)
                    return NULL;
                found->backslashes += 1 + (at[one + 1] == '\\');
                one += size;
                if (one >= 16) {
                    next = one;
                    break;
                }
                mask &= ~0u << one;
            }
            at += next;
        }
#else
        for (; end - at >= 8; at += 8) { /* the same of eight bytes, but not which of them it is */
            const uint64_t ones = ~(uint64_t)0 / 255;
            uint64_t these, quotes, backslashes;
            memcpy(&these, at, 8);
            quotes = these ^ ones * '"', backslashes = these ^ ones * '\\';
            if ((these | (these - ones * ' ') | (quotes - ones) | (backslashes - ones)) & ones * 0x80)
                break;
        }
#endif
        while (*at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
            at++;
        if (*at == '\\') {
            size = is_name ? 0 : escape(at, found);
            if (size == 0)
                return NULL;
            found->backslashes += 1 + (at[1] == '\\');
            at += size;
            continue;
        }
#ifdef SSE2
    stop:
#endif
        if (*at == '"')
            return at;
        do {
            size = letter(at);
            if (size == 0)
                return NULL;
            found->rare += size;
            at += size;
        } while (*at >= 0x80);
    }
}

/* What is behind a number, NULL where parsers may differ on it, or msgspec writes it otherwise. */
static const byte *number_end(const byte *at)
{
    const byte *whole, *point;
    int negative = *at == '-', zero;
    Py_ssize_t digits;
    at += negative;
    whole = at;
    zero = *at == '0';
    if (zero)
        at++;
    else
        while (is_digit(*at))
            at++;
    digits = at - whole;
    if (*at != '.')
        return digits == 0 || digits > INTEGER_DIGITS_MAX || (zero && negative) ? NULL : at;
    point = at++;
    while (zero && *at == '0')
        at++;
    if (zero && !is_digit(*at)) /* 0.0, or with zeros behind it */
        return at - point == 2 && !negative ? at : NULL;
    if (zero && at - point - 1 > ZEROS_MAX)
        return NULL;
    digits = zero ? 0 : digits;
    for (whole = at; is_digit(*at); at++)
        ;
    if (digits == 0 && !zero)
        return NULL;
    if (at == whole || digits + (at - whole) > DECIMAL_DIGITS_MAX)
        return NULL;
    return at[-1] == '0' && at - point != 2 ? NULL : at;
}

static const byte *word_end(const byte *at)
{
    if (at[0] == 't')
        return at[1] == 'r' && at[2] == 'u' && at[3] == 'e' ? at + 4 : NULL;
    if (at[0] == 'f')
        return at[1] == 'a' && at[2] == 'l' && at[3] == 's' && at[4] == 'e' ? at + 5 : NULL;
    return at[0] == 'n' && at[1] == 'u' && at[2] == 'l' && at[3] == 'l' ? at + 4 : NULL;
}

static uint64_t hash_of(const byte *name, Py_ssize_t size)
{
    const uint64_t odd = 0x9E3779B97F4A7C15u;
    uint64_t hash = (uint64_t)size * odd, word;
    for (; size >= 8; name += 8, size -= 8) {
        memcpy(&word, name, 8);
        hash = (hash ^ word) * odd;
        hash ^= hash >> 29;
    }
    for (word = 0; size > 0; size--)
        word = word << 8 | *name++;
    hash = (hash ^ word) * odd;
    return hash ^ hash >> 32;
}

static inline int ends(const byte *end, Py_ssize_t size, const char *by)
{
    Py_ssize_t length = (Py_ssize_t)strlen(by);
    return size >= length && memcmp(end - length, by, (size_t)length) == 0;
}

/* Whether a text under this name decides nothing, wherever it stands in a message or a tool. */
static inline int is_text(const byte *name, Py_ssize_t size)
{
    switch (size) {
    case 4: return memcmp(name, "text", 4) == 0;
    case 6: return memcmp(name, "output", 6) == 0;
    case 7: return memcmp(name, "content", 7) == 0;
    case 8: return memcmp(name, "thinking", 8) == 0;
    case 9: return memcmp(name, "arguments", 9) == 0 || memcmp(name, "signature", 9) == 0;
    case 11: return memcmp(name, "description", 11) == 0;
    case 17: return memcmp(name, "reasoning_content", 17) == 0 || memcmp(name, "encrypted_content", 17) == 0;
    default: return 0;
    }
}

/* What a name says, as `_kind` does. No letter beyond ASCII becomes one of these when it is made small. */
static inline int kind_of(const byte *name, Py_ssize_t size, Found *found)
{
    const byte *end = name + size;
    int kind = 0;
    if (size < 2)
        return 0;
    if (folded(end[-1]) == 'd' && folded(end[-2]) == 'i' && (size == 2 || end[-3] == '_'))
        found->flags |= IDS;
    else if (size > 3 && folded(end[-1]) == 's' && folded(end[-2]) == 'd' && folded(end[-3]) == 'i' && end[-4] == '_')
        found->flags |= IDS;
    if (ends(end, size, "url") || ends(end, size, "ri") || ends(end, size, "file_id"))
        kind = NAMES_FILE;
    else if (size == 3 && memcmp(name, "ttl", 3) == 0)
        kind = NAMES_LIFETIME;
    else if (is_text(name, size))
        kind = NAMES_TEXT;
    if (size > 3 && folded(name[0]) == 'c' && folded(name[1]) == 'a' && folded(name[2]) == 'c' && folded(name[3]) == 'h')
        found->flags |= CACHES;
    return kind;
}

/* Whether a member's text is long and begins like a medium, as `_look` asks. */
static int is_medium(const byte *text, Py_ssize_t size)
{
    static const char *const begin[] = {"iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUQz", "//s", "//M", "//I",
        "ZkxhQ", "T2dnU", "GkXfo", "AAAAG", "AAAAH", "AAAAI", "AAAAF", "JVBERi0"};
    const byte *end = text + size;
    Py_ssize_t characters = 0;
    int like = text[4] == ':' && folded(text[0]) == 'd' && folded(text[1]) == 'a' && folded(text[2]) == 't'
        && folded(text[3]) == 'a';
    for (size_t one = 0; !like && one < sizeof begin / sizeof *begin; one++)
        like = strncmp((const char *)text, begin[one], strlen(begin[one])) == 0;
    if (!like)
        return 0;
    while (text < end && characters < MEDIA_BYTES_MIN) {
        characters += !is_behind(*text);
        text += *text != '\\' ? 1 : text[1] == 'u' ? 6 : 2;
    }
    return characters >= MEDIA_BYTES_MIN;
}

/* Whether the bytes up to `end` are one object that is written as we would write it. */
static int look(const byte *at, const byte *end, Found *found)
{
    const byte *const begin = at;
    Level levels[DEPTH_MAX];
    uint64_t names[OPEN_NAMES_MAX];
    int depth = -1, named = 0, kind = 0;
    const byte *from, *to;
    Py_ssize_t backslashes;

    if (*at != '{')
        return 0;
value:
    switch (*at) {
    case '{':
    case '[':
        if (++depth == DEPTH_MAX)
            return 0;
        found->objects++;
        levels[depth] = (Level){0, named, *at == '['};
        at++;
        if (*at == (levels[depth].is_list ? ']' : '}'))
            goto close;
        if (levels[depth].is_list)
            goto value;
        goto name;
    case '"':
        from = at + 1;
        backslashes = found->backslashes;
        to = string_end(from, end, 0, found);
        if (to == NULL)
            return 0;
        at = to + 1;
        found->strings++;
        found->inside += at - from + 1;
        if (kind == NAMES_FILE)
            found->files++;
        else if (kind == NAMES_LIFETIME && to - from == 2 && from[0] == '1' && from[1] == 'h')
            found->flags |= LONG_CACHES;
        else if (kind == NAMES_TEXT && depth >= CUT_DEPTH_MIN && to - from >= CUT_BYTES_MIN && found->cuts < CUTS_MAX) {
            found->cut[found->cuts++] = (Cut){(uint32_t)(from - begin), (uint32_t)(to - begin)};
            found->cut_bytes += to - from;
            found->cut_backslashes += found->backslashes - backslashes;
        }
        if (to - from >= MEDIA_BYTES_MIN && !levels[depth].is_list && is_medium(from, to - from))
            found->flags |= MEDIA;
        goto after;
    case 't': case 'f': case 'n':
        at = word_end(at);
        break;
    default:
        at = number_end(at);
    }
    if (at == NULL)
        return 0;
after:
    kind = 0;
    if (*at == ',') {
        found->commas++;
        at++;
        if (levels[depth].is_list)
            goto value;
        goto name;
    }
    if (*at != (levels[depth].is_list ? ']' : '}'))
        return 0;
close:
    at++;
    named = levels[depth].first;
    if (depth-- == 0)
        return at == end;
    goto after;
name:
    if (*at != '"')
        return 0;
    from = at + 1;
    to = string_end(from, end, 1, found);
    if (to == NULL || to[1] != ':')
        return 0;
    {
        uint64_t hash = hash_of(from, to - from), bit = (uint64_t)1 << (hash >> 58);
        if (named == OPEN_NAMES_MAX || named - levels[depth].first == OBJECT_NAMES_MAX)
            return 0;
        if (levels[depth].seen & bit)
            for (int other = levels[depth].first; other < named; other++)
                if (names[other] == hash)
                    return 0;
        levels[depth].seen |= bit;
        names[named++] = hash;
    }
    kind = kind_of(from, to - from, found);
    found->strings++;
    found->inside += to - from + 2;
    at = to + 2;
    if (*at == '{' || *at == '[')
        kind = 0;
    goto value;
}

/* A body without its longer texts, NULL where Python has no memory for it. */
static PyObject *rest_of(const byte *body, Py_ssize_t size, const Found *found)
{
    const Py_ssize_t width = (Py_ssize_t)strlen(CUT);
    PyObject *rest = PyBytes_FromStringAndSize(NULL, size - found->cut_bytes + found->cuts * width);
    uint32_t from = 0;
    if (rest == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(rest);
    for (int one = 0; one < found->cuts; one++) {
        uint32_t until = found->cut[one].from;
        memcpy(to, body + from, until - from);
        to += until - from;
        memcpy(to, CUT, (size_t)width);
        to += width;
        from = found->cut[one].to;
    }
    memcpy(to, body + from, (size_t)size - from);
    return rest;
}

static PyObject *scan(PyObject *module, PyObject *body)
{
    Found found;
    (void)module;
    memset(&found, 0, offsetof(Found, cut));
    if (PyBytes_CheckExact(body)) {
        const byte *begin = (const byte *)PyBytes_AS_STRING(body);
        Py_ssize_t size = PyBytes_GET_SIZE(body), marks;
        if (look(begin, begin + size, &found) && found.objects <= OBJECTS_MAX && found.strings <= STRINGS_MAX
            && found.commas <= STRINGS_MAX + OBJECTS_MAX + NUMBERS_MAX && found.backslashes <= BACKSLASHES_MAX
            && size - found.inside <= OUTSIDE_BYTES_MAX) {
            marks = found.commas + found.objects + found.backslashes;
            if (found.cuts == 0 || found.has_cut || size > UINT32_MAX)
                return Py_BuildValue("(innnOOn)", found.flags, found.files, found.rare, marks, Py_None, Py_None, marks);
            PyObject *rest = rest_of(begin, size, &found);
            if (rest == NULL)
                return NULL;
            return Py_BuildValue("(innnNy#n)", found.flags, found.files, found.rare, marks, rest,
                (const char *)found.cut, (Py_ssize_t)sizeof(Cut) * found.cuts, marks - found.cut_backslashes);
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_O, "None, or (flags, files, rare, marks, rest, cuts, left) of a body that is written as we would write it."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_scan", "One look at the body of a call.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__scan(void) { return PyModuleDef_Init(&definition); }
