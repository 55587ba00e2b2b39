/* One look at the body of a call, before it is decoded: is it written as we would write it?

   `scan(body)` is None unless body is the bytes that msgspec writes of the JSON object in it, all parsers read the
   same in it, and it is within the maxima of call.py. Then it is (flags, files, rare, marks, rest, cuts, left, ids):
   what `names_in` finds in the document, the bytes that are no ASCII, and how many commas, brackets that open and
   backslashes it has. `rest` is the body without what decides nothing, whose beginnings and ends in the body are in
   `cuts`, each as four bytes. U+0001 stands for a longer text of a message or a tool. An object with U+0002 as its
   role stands for messages of nothing but texts and calls of functions, and for what a tool says of its function,
   with all of the tools behind it that are functions by the same members, up to the end of that in the last of them.
   `left` are its marks, and `ids` has the places of ids that such messages bring themselves. All three are None where
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
#include <immintrin.h>
#ifndef WITHOUT_AVX2
#define AVX2
#define WIDE __attribute__((target("avx2,bmi,popcnt")))
#endif
#endif

/* As call.py says them; a test compares. */
#define OBJECTS_MAX 50000
#define STRINGS_MAX 100000
#define NUMBERS_MAX 320000
#define BACKSLASHES_MAX 500000
#define OUTSIDE_BYTES_MAX (8 << 20)
/* Beyond these, call.py looks. Names are told apart by a hash; two of one object that have the same are not. */
#define DEPTH_MAX 64       /* objects and lists inside each other */
#define OBJECT_NAMES_MAX 128 /* of one object */
#define OPEN_NAMES_MAX 1024  /* of all objects around one value */
#define INTEGER_DIGITS_MAX 18
#define DECIMAL_DIGITS_MAX 15 /* so many a double holds exactly, in its shortest form as well */
#define CUTS_MAX 2048         /* further texts stay where they are */
#define CUT_DEPTH_MIN 2       /* of the object: what stands further out may be a field that decides */
#define CUT_BYTES_MIN 32
#define CUT "\\u0001"         /* a body that has this itself, or the next, is not cut */
#define CUT_OBJECT "role\":\"\\u0002\"" /* between the brackets of one */
#define CUT_SIZE ((Py_ssize_t)sizeof CUT - 1)
#define CUT_OBJECT_SIZE ((Py_ssize_t)sizeof CUT_OBJECT - 1)
#define IDS_MAX 2048          /* messages with further ones stay where they are */
#define ZEROS_MAX 4           /* in front of a small decimal's digits: it is written without an exponent */

enum { IDS = 1, CACHES = 2, LONG_CACHES = 4, MEDIA = 8, INNER_TOOLS = 16 };
enum { NAMES_FILE = 1, NAMES_LIFETIME = 2, NAMES_TEXT = 3, NAMES_MEDIUM = 4, NAMES_SCHEMA = 5 };

typedef unsigned char byte;

/* Objects and lists of which it is known what may stand in them so that it decides nothing. */
typedef enum {
    UNKNOWN, TOP, TOOLS, TOOL, CHAT, ITEMS, /* those are not cut themselves */
    MESSAGE, CALLS, CALL, CALLED, CONTENT, PARTS, PART, HINT, NOTHING, GIVEN, FUNCTION, ANYTHING
} Place;
enum { TEXT = 1, NONE = 2, OTHER = 4, ANY = TEXT | NONE | OTHER }; /* plain values */
enum { ID = 1, TYPE = 2, ROLE = 4, SAYS = 8, ARGUMENTS = 16, OUTPUT = 32, CODED = 64, INPUT = 128, CALLS_ONE = 256,
    NEEDS_TYPE = 512 /* without a type nobody knows what it is */ };
enum { MAY_BE_EMPTY = ID | TYPE | ROLE | ARGUMENTS | OUTPUT | INPUT };
typedef enum { NO_TYPE, OF_MESSAGE, OF_CALL, OF_RESULT, OF_REASONING, OF_USE, OF_TEXT, OF_FUNCTION, OF_OTHERS } Type;

typedef struct {
    const char *name;
    Py_ssize_t size;
    int plain;          /* which plain values it may have */
    Place object, list; /* what an object or a list is there, UNKNOWN where it may be none */
    int says;
} Member;
/* A name and its size. */
#define N(name) name, sizeof name - 1

typedef struct {
    uint64_t seen; /* a bit for the hash of each name */
    int first;     /* its names' place in `names` */
    int is_list;
    Place place;
    Type type;
    int says;
} Level;

typedef struct {
    uint32_t from, to;
} Span;

typedef struct {
    Py_ssize_t bytes, marks; /* that are not in the rest */
    int cuts, ids;
} Left;

typedef struct {
    Py_ssize_t strings, objects, commas, backslashes, rare, inside, files;
    int flags, has_cut;
    Left out;
    Span cut[CUTS_MAX]; /* not cleared, as what follows */
    Span id[IDS_MAX];
    byte is_object[CUTS_MAX];
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

/* A mask of sixty-four bytes: a bit for each that is equal to `one`, or less as a signed byte (`equal`, `below`). */
typedef uint64_t (*Find)(const byte *at, char one);

static inline uint64_t equal(const byte *at, char one)
{
    uint64_t found = 0;
    for (int part = 0; part < 64; part += 16) {
        __m128i these = _mm_loadu_si128((const __m128i *)(at + part));
        found |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(these, _mm_set1_epi8(one))) << part;
    }
    return found;
}

static inline uint64_t below(const byte *at, char one)
{
    uint64_t found = 0;
    for (int part = 0; part < 64; part += 16) {
        __m128i these = _mm_loadu_si128((const __m128i *)(at + part));
        found |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmplt_epi8(these, _mm_set1_epi8(one))) << part;
    }
    return found;
}

/* Where a text stops, or has what is looked at by itself, of which nothing was counted: behind what is plain ASCII
   and the usual escapes. No escape began in front of `at`. */
static inline __attribute__((always_inline)) const byte *plain_end(
    const byte *at, const byte *end, Py_ssize_t *backslashes, Find is, Find is_below)
{
    while (end - at >= 64 && *backslashes <= BACKSLASHES_MAX) {
        uint64_t quotes = is(at, '"'), slashes = is(at, '\\'), stops = quotes | is_below(at, ' ');
        int size = 64;
        if (slashes) {
            /* What follows a backslash that is not itself escaped, by carries (simdjson does it so). */
            const uint64_t odd = 0xAAAAAAAAAAAAAAAAu;
            uint64_t escaped = ((((slashes << 1) | odd) - slashes) ^ odd) ^ slashes, twice = escaped & slashes;
            uint64_t usual = quotes | slashes | is(at, 'n') | is(at, 't') | is(at, 'r');
            /* A backslash that is escaped may look like a mark with what follows. */
            uint64_t looked_at = (escaped & ~usual) | (twice & is(at, 'u') >> 1);
            stops = (stops & ~escaped) | looked_at >> 1;
            size -= slashes >> 63 ? 1 + (int)(twice >> 63) : 0; /* one that is not whole yet begins the next */
        }
        int stop = stops ? __builtin_ctzll(stops) : 64;
        size = stop < size ? stop : size;
        if (slashes)
            *backslashes += __builtin_popcountll(size == 64 ? slashes : slashes & (((uint64_t)1 << size) - 1));
        at += size;
        if (size == stop && stop < 64)
            break;
    }
    return at;
}

static const byte *plain_end_by_16(const byte *at, const byte *end, Py_ssize_t *backslashes)
{
    return plain_end(at, end, backslashes, equal, below);
}
static const byte *(*quickest_end)(const byte *at, const byte *end, Py_ssize_t *backslashes) = plain_end_by_16;
#endif
#ifdef AVX2
WIDE static inline uint64_t equal_wide(const byte *at, char one)
{
    __m256i first = _mm256_loadu_si256((const __m256i *)at), last = _mm256_loadu_si256((const __m256i *)(at + 32));
    __m256i all = _mm256_set1_epi8(one);
    uint64_t behind = (unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(last, all));
    return behind << 32 | (unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(first, all));
}

WIDE static inline uint64_t below_wide(const byte *at, char one)
{
    __m256i first = _mm256_loadu_si256((const __m256i *)at), last = _mm256_loadu_si256((const __m256i *)(at + 32));
    __m256i all = _mm256_set1_epi8(one);
    uint64_t behind = (unsigned)_mm256_movemask_epi8(_mm256_cmpgt_epi8(all, last));
    return behind << 32 | (unsigned)_mm256_movemask_epi8(_mm256_cmpgt_epi8(all, first));
}

WIDE static const byte *plain_end_by_32(const byte *at, const byte *end, Py_ssize_t *backslashes)
{
    return plain_end(at, end, backslashes, equal_wide, below_wide);
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
    if (letters[at[1]]) {
        found->has_cut |= at[1] == '\\' && !strncmp((const char *)at + 2, "u0001", 5); /* looks like a mark */
        return 2;
    }
    if (at[1] != 'u' || at[2] != '0' || at[3] != '0' || (at[4] != '0' && at[4] != '1')
        || !is_lower_hex(at[5]))
        return 0;
    found->has_cut |= at[4] == '0' && (at[5] == '1' || at[5] == '2');
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
            int one = mask ? __builtin_ctz(mask) : 16;
            if (one < 16 && at[one] != '\\') {
                at += one;
                break;
            }
            if (!is_name && end - at >= 64) {
                at = quickest_end(at + (one & 16), end, &found->backslashes);
                break;
            }
            at += one;
            if (one < 16)
                break;
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
        if (*at == '"')
            return at;
        if (*at == '\\') {
            size = is_name || found->backslashes > BACKSLASHES_MAX ? 0 : escape(at, found);
            if (size == 0)
                return NULL;
            found->backslashes += 1 + (at[1] == '\\');
            at += size;
            continue;
        }
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

/* What may stand at each place so that `only_text` holds, and no family finds an id there but those that a whole
   object has of its own: as `_BESIDE` of family.py and `_WHOLE` there say. */
static const Member TOP_MEMBERS[] = {
    {N("messages"), 0, UNKNOWN, CHAT, 0}, {N("input"), 0, UNKNOWN, ITEMS, 0}, {N("tools"), 0, UNKNOWN, TOOLS, 0},
    {NULL, 0, 0, 0, 0, 0},
};
static const Member TOOL_MEMBERS[] = {
    {N("type"), TEXT, UNKNOWN, UNKNOWN, TYPE}, {N("function"), 0, FUNCTION, UNKNOWN, 0},
    {N("name"), TEXT, UNKNOWN, UNKNOWN, 0}, {N("description"), TEXT | NONE, UNKNOWN, UNKNOWN, 0},
    {N("input_schema"), 0, ANYTHING, UNKNOWN, INPUT}, {N("parameters"), 0, ANYTHING, UNKNOWN, ARGUMENTS},
    {N("strict"), NONE | OTHER, UNKNOWN, UNKNOWN, 0}, {NULL, 0, 0, 0, 0, 0},
};
static const Member MESSAGE_MEMBERS[] = {
    {N("role"), TEXT, UNKNOWN, UNKNOWN, ROLE}, {N("content"), TEXT | NONE, UNKNOWN, CONTENT, SAYS},
    {N("type"), TEXT, UNKNOWN, UNKNOWN, TYPE}, {N("tool_calls"), NONE, UNKNOWN, CALLS, 0},
    {N("tool_call_id"), TEXT, UNKNOWN, UNKNOWN, 0}, {N("call_id"), TEXT, UNKNOWN, UNKNOWN, 0},
    {N("id"), TEXT, UNKNOWN, UNKNOWN, ID}, {N("name"), TEXT, UNKNOWN, UNKNOWN, 0},
    {N("arguments"), TEXT, UNKNOWN, UNKNOWN, ARGUMENTS}, {N("output"), TEXT, UNKNOWN, PARTS, OUTPUT},
    {N("status"), TEXT | NONE, UNKNOWN, UNKNOWN, 0}, {N("phase"), TEXT | NONE, UNKNOWN, UNKNOWN, 0},
    {N("refusal"), TEXT | NONE, UNKNOWN, UNKNOWN, 0}, {N("reasoning"), TEXT | NONE, UNKNOWN, UNKNOWN, 0},
    {N("reasoning_content"), TEXT | NONE, UNKNOWN, UNKNOWN, 0}, {N("function_call"), NONE, UNKNOWN, UNKNOWN, 0},
    {N("encrypted_content"), TEXT | NONE, UNKNOWN, UNKNOWN, CODED}, {N("summary"), 0, UNKNOWN, PARTS, 0},
    {N("annotations"), NONE, UNKNOWN, NOTHING, 0}, {N("cache_control"), NONE, HINT, UNKNOWN, 0},
    {NULL, 0, 0, 0, 0, 0},
};
static const Member PART_MEMBERS[] = {
    {N("type"), TEXT, UNKNOWN, UNKNOWN, TYPE}, {N("text"), TEXT, UNKNOWN, UNKNOWN, 0},
    {N("id"), TEXT, UNKNOWN, UNKNOWN, ID}, {N("name"), TEXT, UNKNOWN, UNKNOWN, 0}, {N("input"), TEXT, GIVEN, UNKNOWN, INPUT},
    {N("tool_use_id"), TEXT, UNKNOWN, UNKNOWN, NEEDS_TYPE}, {N("content"), TEXT | NONE, UNKNOWN, CONTENT, 0},
    {N("is_error"), NONE | OTHER, UNKNOWN, UNKNOWN, 0}, {N("thinking"), TEXT, UNKNOWN, UNKNOWN, NEEDS_TYPE},
    {N("signature"), TEXT | NONE, UNKNOWN, UNKNOWN, NEEDS_TYPE}, {N("data"), TEXT, UNKNOWN, UNKNOWN, NEEDS_TYPE},
    {N("refusal"), TEXT | NONE, UNKNOWN, UNKNOWN, NEEDS_TYPE}, {N("annotations"), NONE, UNKNOWN, NOTHING, 0},
    {N("logprobs"), NONE, UNKNOWN, NOTHING, 0}, {N("cache_control"), NONE, HINT, UNKNOWN, NEEDS_TYPE},
    {NULL, 0, 0, 0, 0, 0},
};
static const Member CALL_MEMBERS[] = {
    {N("id"), TEXT, UNKNOWN, UNKNOWN, ID}, {N("type"), TEXT, UNKNOWN, UNKNOWN, TYPE},
    {N("function"), 0, CALLED, UNKNOWN, CALLS_ONE}, {N("index"), OTHER, UNKNOWN, UNKNOWN, 0},
    {NULL, 0, 0, 0, 0, 0},
};
static const Member CALLED_MEMBERS[] = {
    {N("name"), TEXT, UNKNOWN, UNKNOWN, 0}, {N("arguments"), TEXT, UNKNOWN, UNKNOWN, 0}, {NULL, 0, 0, 0, 0, 0},
};
static const Member HINT_MEMBERS[] = {
    {N("type"), TEXT, UNKNOWN, UNKNOWN, 0}, {N("ttl"), TEXT, UNKNOWN, UNKNOWN, 0}, {NULL, 0, 0, 0, 0, 0},
};
static const Member FUNCTION_MEMBERS[] = {
    {N("name"), TEXT, UNKNOWN, UNKNOWN, 0}, {N("description"), TEXT | NONE, UNKNOWN, UNKNOWN, 0},
    {N("parameters"), NONE, ANYTHING, UNKNOWN, 0}, {N("strict"), NONE | OTHER, UNKNOWN, UNKNOWN, 0},
    {NULL, 0, 0, 0, 0, 0},
};
static const Member ANY_MEMBERS[] = {{NULL, 0, ANY, ANYTHING, ANYTHING, 0}};
static const Member GIVEN_MEMBERS[] = {{NULL, 0, ANY, GIVEN, GIVEN, 0}};
static const Member *const MEMBERS[ANYTHING + 1] = {
    [TOP] = TOP_MEMBERS, [TOOL] = TOOL_MEMBERS, [MESSAGE] = MESSAGE_MEMBERS, [CALL] = CALL_MEMBERS,
    [CALLED] = CALLED_MEMBERS, [PART] = PART_MEMBERS, [HINT] = HINT_MEMBERS, [FUNCTION] = FUNCTION_MEMBERS,
};

/* Whether a name within what a function was given could name an object: as any family may spell it. */
static int may_name(const byte *name, Py_ssize_t size)
{
    static const char *const naming[] = {"conversation", "container", "trainingfile", "validationfile", "cachedcontent",
        "fileuri", "filename", "uri", "uris", "filesearchstorenames", "previousinteractionid", "s3location"};
    char plain[24];
    size_t length = 0;
    for (Py_ssize_t one = 0; one < size; one++)
        if (name[one] != '_') {
            if (length == sizeof plain - 1)
                return 0;
            plain[length++] = (char)folded(name[one]);
        }
    plain[length] = 0;
    for (size_t one = 0; one < sizeof naming / sizeof *naming; one++)
        if (strcmp(plain, naming[one]) == 0)
            return 1;
    return 0;
}

static inline int is_id(const byte *end, Py_ssize_t size)
{
    int many = size > 2 && folded(end[-1]) == 's';
    end -= many, size -= many;
    if (size < 2 || folded(end[-1]) != 'd' || folded(end[-2]) != 'i')
        return 0;
    if (size == 2)
        return !many;
    if (size > 4 && folded(end[-3]) == 'u' && folded(end[-4]) == 'u')
        end -= 2;
    return end[-3] == '_' || end[-3] == '-';
}

/* What may stand under a name, NULL where nobody knows. */
static const Member *member_of(Place place, const byte *name, Py_ssize_t size)
{
    if (place == ANYTHING)
        return ANY_MEMBERS;
    if (place == GIVEN)
        return is_id(name + size, size) || may_name(name, size) ? NULL : GIVEN_MEMBERS;
    for (const Member *one = MEMBERS[place]; one != NULL && one->name != NULL; one++)
        if (one->size == size && *one->name == (char)*name && memcmp(one->name, name, (size_t)size) == 0)
            return one;
    return NULL;
}

/* What an element of a list may be. */
static inline Place element_of(Place list)
{
    switch (list) {
    case TOOLS: return TOOL;
    case CHAT: case ITEMS: return MESSAGE;
    case CALLS: return CALL;
    case CONTENT: case PARTS: return PART;
    case GIVEN: case ANYTHING: return list;
    default: return UNKNOWN;
    }
}

static Type type_of(const byte *text, Py_ssize_t size)
{
    static const struct {
        const char *name;
        Type type;
    } types[] = {
        {"text", OF_TEXT}, {"tool_use", OF_USE}, {"tool_result", OF_TEXT}, {"function", OF_FUNCTION},
        {"message", OF_MESSAGE}, {"input_text", OF_TEXT}, {"output_text", OF_TEXT}, {"function_call", OF_CALL},
        {"function_call_output", OF_RESULT}, {"reasoning", OF_REASONING}, {"summary_text", OF_TEXT},
        {"reasoning_text", OF_TEXT}, {"thinking", OF_TEXT}, {"redacted_thinking", OF_TEXT}, {"refusal", OF_TEXT},
    };
    for (size_t one = 0; one < sizeof types / sizeof *types; one++)
        if (strlen(types[one].name) == (size_t)size && memcmp(types[one].name, text, (size_t)size) == 0)
            return types[one].type;
    return OF_OTHERS;
}

/* Whether an object decides nothing, now that all of its members are known: what it is, and whose its id is. */
static int is_plain(const Level *level, Place outside)
{
    Type type = level->type;
    int says = level->says;
    switch (level->place) {
    case MESSAGE:
        if (type == OF_FUNCTION || type == OF_OTHERS)
            return 0;
        if (type == NO_TYPE && !(says & ROLE))
            return 0;
        if (!(says & ID))
            return 1;
        if (type == NO_TYPE || type == OF_MESSAGE)
            return (says & ROLE) && (says & SAYS);
        return outside == ITEMS
            && ((type == OF_CALL && (says & ARGUMENTS)) || (type == OF_RESULT && (says & OUTPUT))
                || (type == OF_REASONING && (says & CODED)));
    case PART:
        if (type == OF_FUNCTION || type == OF_OTHERS || (type == NO_TYPE && (says & (NEEDS_TYPE | INPUT))))
            return 0;
        return !(says & ID) || (outside == CONTENT && type == OF_USE && (says & INPUT));
    case CALL:
        return (type == NO_TYPE || type == OF_FUNCTION) && (!(says & ID) || (says & CALLS_ONE));
    default:
        return 1;
    }
}

/* Whether a member may have tools, as tools.py says: `tools`, `tool`, `definition`, or `tools` with a long s (U+017F). */
static inline int may_have_tools(const byte *name, Py_ssize_t size)
{
    static const char *const names[] = {"tool", "tools", "tool\xC5\xBF", "definition"};
    if (size != 10 && (size < 4 || size > 6))
        return 0;
    const char *like = names[size == 10 ? 3 : size - 4];
    for (Py_ssize_t one = 0; one < size; one++)
        if (folded(name[one]) != (byte)like[one])
            return 0;
    return 1;
}

/* Whether a text under this name, or a list, may be a medium: one of `MEDIA_NAMES`, in any case. */
static inline int is_medium(const byte *name, Py_ssize_t size)
{
    static const char *const by_size[][5] = {[3] = {"pdf"}, [4] = {"data", "file"},
        [5] = {"bytes", "image", "audio", "video"}, [6] = {"result", "images"}, [8] = {"document"}, [9] = {"file_data"},
        [11] = {"input_audio"}};
    if (size >= (Py_ssize_t)(sizeof by_size / sizeof *by_size))
        return 0;
    for (const char *const *like = by_size[size]; *like != NULL; like++) {
        Py_ssize_t one = 0;
        while (one < size && folded(name[one]) == (byte)(*like)[one])
            one++;
        if (one == size)
            return 1;
    }
    return 0;
}

/* Whether a text begins as one of `_SCHEMES`. */
static inline int is_address(const byte *text, Py_ssize_t size)
{
    static const char *const schemes[] = {"http", "data:", "gs://", "s3://", "file:", "oss:/"};
    if (size < 4 || strchr("hdgsfo", folded(*text)) == NULL)
        return 0;
    for (size_t one = 0; one < sizeof schemes / sizeof *schemes; one++) {
        Py_ssize_t at = 0;
        while (schemes[one][at] && at < size && folded(text[at]) == (byte)schemes[one][at])
            at++;
        if (!schemes[one][at])
            return 1;
    }
    return 0;
}

/* What a name says, as `_kind` does. No letter beyond ASCII becomes one of these when it is made small. */
static inline int kind_of(const byte *name, Py_ssize_t size, Found *found)
{
    const byte *end = name + size;
    int kind = 0;
    if (size < 2)
        return 0;
    if (is_id(end, size))
        found->flags |= IDS;
    if (ends(end, size, "url") || ends(end, size, "ri") || ends(end, size, "file_id"))
        kind = NAMES_FILE;
    else if (size == 3 && memcmp(name, "ttl", 3) == 0)
        kind = NAMES_LIFETIME;
    else if (is_text(name, size))
        kind = NAMES_TEXT;
    else if (is_medium(name, size))
        kind = NAMES_MEDIUM;
    else if (*name == '$')
        kind = NAMES_SCHEMA;
    if (size > 3 && folded(name[0]) == 'c' && folded(name[1]) == 'a' && folded(name[2]) == 'c' && folded(name[3]) == 'h')
        found->flags |= CACHES;
    return kind;
}

/* Cut an object that ends here, if that is worth it, with those in front of it in the same list; or say that it is
   left as it is. `before` is what was cut out before it began, and `marks` are those in it. */
static int cut_object(Found *found, Left before, uint32_t from, uint32_t to, Py_ssize_t marks)
{
    int last = before.cuts - 1, ids = found->out.ids;
    int follows = last >= 0 && found->is_object[last] && found->cut[last].to + strlen("},{\"") == from;
    if (!follows && (to - from <= CUT_OBJECT_SIZE || before.cuts == CUTS_MAX))
        return 0;
    found->out = before;
    found->out.ids = ids;
    if (follows) {
        found->out.bytes += to - found->cut[last].to;
        found->out.marks += marks + 1;
        found->cut[last].to = to;
    } else {
        found->out.bytes += to - from - CUT_OBJECT_SIZE;
        found->out.marks += marks - 1;
        found->is_object[before.cuts] = 1;
        found->cut[found->out.cuts++] = (Span){from, to};
    }
    return 1;
}

/* What is known of the tools up to here: of one whether it is plain, a hash of its members' names, what was cut out
   before it began, and how many marks came before the end of its last cut. */
typedef struct {
    int plain;
    uint64_t shape;
    Left before, out;
    Py_ssize_t marks;
} Tool;

/* A tool ends here. One that is a function like that in front of it goes into its cut, where that is its last one. */
static void end_tool(Found *found, const Level *level, Tool *tool, Tool *last)
{
    Left *out = &found->out;
    int cuts = out->cuts - 1, is_function = level->type == OF_FUNCTION, objects = 0;
    if ((level->says & ARGUMENTS) && !is_function)
        *out = tool->before, tool->plain = 0; /* whoever knows no function by it looks into its parameters */
    for (int one = tool->before.cuts; one < out->cuts; one++)
        objects += found->is_object[one];
    tool->plain &= objects == 1 && found->is_object[cuts]
        && (is_function || (level->type == NO_TYPE && (level->says & INPUT)));
    if (tool->plain && last->plain && tool->shape == last->shape) {
        uint32_t to = found->cut[cuts].to, *end = &found->cut[last->out.cuts - 1].to;
        *out = last->out;
        out->bytes += to - *end;
        out->marks += tool->marks - last->marks;
        *end = to;
    }
    *last = *tool;
    last->out = *out;
}

#define SPOILT (cuts_at = 0, tool.plain = 0, found->out.ids = before.ids)

/* Whether the bytes up to `end` are one object that is written as we would write it, with no more in it than is counted. */
static int look(const byte *at, const byte *end, Found *found)
{
    const byte *const begin = at;
    Level levels[DEPTH_MAX];
    uint64_t names[OPEN_NAMES_MAX];
    int depth = -1, named = 0, kind = 0;
    const byte *from, *to;
    Py_ssize_t backslashes;
    /* An object that is cut if it holds nothing else than it may: its depth, 0 for none. */
    int cuts_at = 0, plain = 0;
    const byte *cuts_from = NULL;
    Py_ssize_t marks_before = 0;
    const Member *member = NULL;
    Place place;
    Left before = found->out;
    Tool tool = {0}, last_tool = {0};
    int of_tool = 0; /* whether a value is a member of one, and no part of what is cut */

    if (*at != '{')
        return 0;
value:
    switch (*at) {
    case '{':
    case '[':
        place = depth < 0 ? TOP : UNKNOWN;
        if (depth >= 0 && levels[depth].is_list)
            place = *at == '{' || levels[depth].place >= GIVEN ? element_of(levels[depth].place) : UNKNOWN;
        else if (member != NULL) {
            place = *at == '{' ? member->object : member->list;
            if (cuts_at && ((member->says & MAY_BE_EMPTY) || (at[1] != '}' && at[1] != ']')))
                levels[depth].says |= member->says;
        }
        if (cuts_at) {
            if (place == UNKNOWN)
                SPOILT;
        } else if (place == TOOL)
            tool = (Tool){1, 0, found->out, found->out, 0};
        else if (place >= MESSAGE) {
            if ((place == MESSAGE || levels[depth].place == TOOL) && *at == '{' && at[1] == '"') {
                cuts_at = depth + 1, cuts_from = at + 2, before = found->out;
                marks_before = found->commas + found->objects + found->backslashes;
                if (of_tool)
                    levels[depth].says |= member->says;
            } else
                place = UNKNOWN;
        }
        if (of_tool && !cuts_at)
            tool.plain = 0;
        of_tool = 0;
        if (++depth == DEPTH_MAX)
            return 0;
        if (++found->objects > OBJECTS_MAX)
            return 0;
        levels[depth] = (Level){0, named, *at == '[', place, NO_TYPE, 0};
        member = NULL;
        plain = place == GIVEN || place == ANYTHING ? ANY : 0; /* of a list's first element */
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
        if (++found->strings > STRINGS_MAX || found->backslashes > BACKSLASHES_MAX)
            return 0;
        found->inside += at - from + 1;
        if (kind == NAMES_FILE) {
            found->files++;
            if (to - from > 4 && from[4] == ':' && folded(from[0]) == 'd' && folded(from[1]) == 'a' && folded(from[2]) == 't'
                && folded(from[3]) == 'a')
                found->flags |= MEDIA;
        } else if ((kind == NAMES_MEDIUM && to > from) || (kind == 0 && is_address(from, to - from)))
            found->flags |= MEDIA;
        else if (kind == NAMES_LIFETIME && to - from == 2 && from[0] == '1' && from[1] == 'h')
            found->flags |= LONG_CACHES;
        else if (kind == NAMES_TEXT && depth >= CUT_DEPTH_MIN && to - from >= CUT_BYTES_MIN && found->out.cuts < CUTS_MAX) {
            found->is_object[found->out.cuts] = 0;
            found->cut[found->out.cuts++] = (Span){(uint32_t)(from - begin), (uint32_t)(to - begin)};
            found->out.bytes += to - from - CUT_SIZE;
            found->out.marks += found->backslashes - backslashes;
        }
        if (cuts_at) {
            int says = member == NULL || (to == from && !(member->says & MAY_BE_EMPTY)) ? 0 : member->says;
            levels[depth].says |= says;
            if (says == TYPE)
                levels[depth].type = type_of(from, to - from);
            if (!(plain & TEXT) || (says == ID && found->out.ids == IDS_MAX))
                SPOILT;
            else if (says == ID)
                found->id[found->out.ids++] = (Span){(uint32_t)(from - begin), (uint32_t)(to - begin)};
        } else if (of_tool) {
            tool.plain &= (plain & TEXT) != 0;
            if (member != NULL && member->says == TYPE)
                levels[depth].type = type_of(from, to - from);
        }
        goto after;
    case 't': case 'f': case 'n':
        if (!(plain & (*at == 'n' ? NONE : OTHER))) {
            if (cuts_at)
                SPOILT;
            tool.plain = 0;
        }
        at = word_end(at);
        break;
    default:
        if (!(plain & OTHER)) {
            if (cuts_at)
                SPOILT;
            tool.plain = 0;
        }
        at = number_end(at);
    }
    if (at == NULL)
        return 0;
after:
    kind = 0;
    if (*at == ',') {
        if (++found->commas > STRINGS_MAX + OBJECTS_MAX + NUMBERS_MAX)
            return 0;
        at++;
        if (levels[depth].is_list) {
            member = NULL;
            plain = levels[depth].place >= GIVEN ? ANY : 0;
            goto value;
        }
        goto name;
    }
    if (*at != (levels[depth].is_list ? ']' : '}'))
        return 0;
close:
    at++;
    if (cuts_at) {
        Py_ssize_t marks = found->commas + found->objects + found->backslashes - marks_before;
        if (!levels[depth].is_list && !is_plain(&levels[depth], levels[depth - 1].place))
            SPOILT;
        else if (cuts_at == depth) {
            if (!cut_object(found, before, (uint32_t)(cuts_from - begin), (uint32_t)(at - 1 - begin), marks))
                SPOILT;
            cuts_at = 0;
            tool.marks = marks + marks_before;
        }
    } else if (levels[depth].place == TOOL) {
        end_tool(found, &levels[depth], &tool, &last_tool);
        of_tool = 0;
    }
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
    place = levels[depth].place;
    if (depth > 0 && place < GIVEN && may_have_tools(from, to - from)) /* further in are data, in which none looks */
        found->flags |= INNER_TOOLS;
    member = cuts_at || place == TOP || place == TOOL ? member_of(place, from, to - from) : NULL;
    if (cuts_at && member == NULL)
        SPOILT;
    plain = member == NULL ? 0 : member->plain;
    of_tool = !cuts_at && place == TOOL;
    if (of_tool)
        tool.shape = hash_of((const byte *)&names[named - 1], sizeof *names) ^ tool.shape * 3;
    if (++found->strings > STRINGS_MAX)
        return 0;
    found->inside += to - from + 2;
    at = to + 2;
    if ((kind == NAMES_MEDIUM || kind == NAMES_FILE) && *at == '[' && at[1] != ']')
        found->flags |= MEDIA;
    if (*at == '{' || *at == '[')
        kind = 0;
    goto value;
}

/* A body without what was cut, NULL where Python has no memory for it. */
static PyObject *rest_of(const byte *body, Py_ssize_t size, const Found *found)
{
    PyObject *rest = PyBytes_FromStringAndSize(NULL, size - found->out.bytes);
    uint32_t from = 0;
    if (rest == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(rest);
    for (int one = 0; one < found->out.cuts; one++) {
        uint32_t until = found->cut[one].from;
        size_t width = (size_t)(found->is_object[one] ? CUT_OBJECT_SIZE : CUT_SIZE);
        memcpy(to, body + from, until - from);
        to += until - from;
        memcpy(to, found->is_object[one] ? CUT_OBJECT : CUT, width);
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
        if (look(begin, begin + size, &found) && size - found.inside <= OUTSIDE_BYTES_MAX) {
            marks = found.commas + found.objects + found.backslashes;
            if (found.out.cuts == 0 || found.has_cut || size > UINT32_MAX)
                return Py_BuildValue("(innnOOnO)", found.flags, found.files, found.rare, marks, Py_None, Py_None, marks,
                    Py_None);
            PyObject *rest = rest_of(begin, size, &found);
            if (rest == NULL)
                return NULL;
            return Py_BuildValue("(innnNy#ny#)", found.flags, found.files, found.rare, marks, rest,
                (const char *)found.cut, (Py_ssize_t)sizeof(Span) * found.out.cuts, marks - found.out.marks,
                (const char *)found.id, (Py_ssize_t)sizeof(Span) * found.out.ids);
        }
    }
    Py_RETURN_NONE;
}

static inline unsigned is_dense(byte c) { return (unsigned)((byte)(c - '0') < 10) | (unsigned)((byte)(c - 'A') < 26); }

/* How many bytes are digits or capitals; so many at once as a byte can count, which a compiler makes wide. */
static PyObject *dense(PyObject *module, PyObject *body)
{
    enum { AT_ONCE = 240 };
    (void)module;
    if (!PyBytes_CheckExact(body)) {
        PyErr_SetString(PyExc_TypeError, "expected bytes");
        return NULL;
    }
    const byte *at = (const byte *)PyBytes_AS_STRING(body), *end = at + PyBytes_GET_SIZE(body);
    Py_ssize_t found = 0;
    for (; end - at >= AT_ONCE; at += AT_ONCE) {
        byte some = 0;
        for (int one = 0; one < AT_ONCE; one++)
            some = (byte)(some + is_dense(at[one]));
        found += some;
    }
    for (; at < end; at++)
        found += is_dense(*at);
    return PyLong_FromSsize_t(found);
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_O, "None, or (flags, files, rare, marks, rest, cuts, left, ids) of a body that is written as we would write it."},
    {"dense", dense, METH_O, "How many bytes are digits or capitals."},
    {NULL, NULL, 0, NULL},
};

/* Take AVX2 where this processor has it. */
static int choose(PyObject *module)
{
    (void)module;
#ifdef AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt"))
        quickest_end = plain_end_by_32;
#endif
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)choose}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_scan", "One look at the body of a call.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__scan(void) { return PyModuleDef_Init(&definition); }
