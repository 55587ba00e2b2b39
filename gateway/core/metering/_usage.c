/* What a call used, in one pass. `usage_of(document)` is what `_read_whole` of families/openai/chat.py reads of a whole
   answer: (model, service tier, tokens of the prompt, of the completion, cached, of reasoning), of one whose report says
   no more than that. `event_at(chunk, at, first, differs)` is `known_at` of stream.py, for texts without escapes.
   Each returns None where Python has to look: Python is the definition, this is the short way.

   A document is taken where msgspec takes it: texts that nobody reads may be no UTF-8. It is linear in time, allocates
   nothing but the answer, and calls nothing that could fail in between. A bytes object ends in NUL, which no JSON text
   has: so a byte is looked at only behind one that was not it. */

#define _GNU_SOURCE /* memmem */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) && !defined(WITHOUT_SSE2)
#define SSE2
#include <emmintrin.h>
#endif

/* Beyond these, Python looks. */
#define DEPTH_MAX 60
#define COUNT_DIGITS_MAX 15
#define NAME_BYTES_MAX 128
#define ENVELOPE_BYTES 512 /* as report.py says */

typedef unsigned char byte;

/* What a name of a report has: a count that is read, one that must be 0 (Python reads it as a part of its own), one that
   is not read, or an object of counts. All but the first three may be null. */
enum { PROMPT, COMPLETION, TOTAL, CACHED, REASONING, COUNTS, NOTHING, ANY, OF_PROMPT, OF_COMPLETION };
/* What a name of a document has. An error that is not null is left to Python. */
enum { USAGE, ERROR, MODEL, TIER };

typedef struct {
    const char *name;
    int kind;
} Name;

static const Name of_document[] = {
    {"usage", USAGE}, {"error", ERROR}, {"model", MODEL}, {"service_tier", TIER}, {NULL, 0},
};
static const Name of_usage[] = {
    {"prompt_tokens", PROMPT}, {"completion_tokens", COMPLETION}, {"total_tokens", TOTAL},
    {"prompt_tokens_details", OF_PROMPT}, {"completion_tokens_details", OF_COMPLETION}, {NULL, 0},
};
static const Name of_prompt[] = {
    {"cached_tokens", CACHED}, {"audio_tokens", NOTHING}, {"image_tokens", NOTHING}, {"text_tokens", ANY}, {NULL, 0},
};
static const Name of_completion[] = {
    {"reasoning_tokens", REASONING}, {"audio_tokens", NOTHING}, {"image_tokens", NOTHING}, {"text_tokens", ANY},
    {"accepted_prediction_tokens", ANY}, {"rejected_prediction_tokens", ANY}, {NULL, 0},
};

static inline int is_digit(byte c) { return c >= '0' && c <= '9'; }

/* Behind white space. */
static inline const byte *white(const byte *at)
{
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')
        at++;
    return at;
}

/* What four hexadecimal digits say, -1 where they are none. */
static int unit(const byte *at)
{
    int said = 0;
    for (int i = 0; i < 4; i++) {
        byte c = at[i] | 0x20;
        if (!is_digit(at[i]) && (c < 'a' || c > 'f'))
            return -1;
        said = said * 16 + (is_digit(at[i]) ? at[i] - '0' : c - 'a' + 10);
    }
    return said;
}

/* The quote that ends the text that begins here, NULL where none does. */
static const byte *text_end(const byte *at, const byte *stop)
{
    (void)stop;
    for (;;) {
#ifdef SSE2
        while (stop - at >= 16) {
            __m128i these = _mm_loadu_si128((const __m128i *)at);
            __m128i found = _mm_cmpeq_epi8(these, _mm_set1_epi8('"'));
            found = _mm_or_si128(found, _mm_cmpeq_epi8(these, _mm_set1_epi8('\\')));
            found = _mm_or_si128(found, _mm_cmpeq_epi8(these, _mm_min_epu8(these, _mm_set1_epi8(' ' - 1))));
            unsigned marks = (unsigned)_mm_movemask_epi8(found);
            if (marks) {
                at += __builtin_ctz(marks);
                break;
            }
            at += 16;
        }
#endif
        while (*at != '"' && *at != '\\' && *at >= ' ')
            at++;
        if (*at == '"')
            return at;
        if (*at != '\\')
            return NULL;
        at += 2;
        if (at[-1] == 'u') {
            int said = unit(at);
            if (said >= 0xD800 && said < 0xDC00 && at[4] == '\\' && at[5] == 'u') {
                at += 6;
                if (unit(at) < 0xDC00 || unit(at) > 0xDFFF)
                    return NULL;
            } else if (said < 0 || (said >= 0xD800 && said <= 0xDFFF)) {
                return NULL;
            }
            at += 4;
        } else if (at[-1] == '\0' || strchr("\"\\/bfnrt", at[-1]) == NULL) {
            return NULL;
        }
    }
}

/* Behind the number or the word that begins here, NULL where none does. */
static const byte *plain_end(const byte *at)
{
    const char *word = *at == 't' ? "true" : *at == 'f' ? "false" : *at == 'n' ? "null" : NULL;
    if (word != NULL)
        return strncmp((const char *)at, word, strlen(word)) == 0 ? at + strlen(word) : NULL;
    at += *at == '-';
    if (!is_digit(*at))
        return NULL;
    if (*at++ != '0')
        while (is_digit(*at))
            at++;
    if (*at == '.') {
        if (!is_digit(*++at))
            return NULL;
        while (is_digit(*at))
            at++;
    }
    if (*at == 'e' || *at == 'E') {
        at++;
        at += *at == '+' || *at == '-';
        if (!is_digit(*at))
            return NULL;
        while (is_digit(*at))
            at++;
    }
    return at;
}

/* Behind the value that begins here, NULL where none does. */
static const byte *value_end(const byte *at, const byte *stop)
{
    uint64_t are_objects = 0;
    int depth = 0, is_name = 0;
    for (;;) {
        at = white(at);
        if (*at == '"') {
            if ((at = text_end(at + 1, stop)) == NULL)
                return NULL;
            at++;
            if (is_name) {
                at = white(at);
                if (*at++ != ':')
                    return NULL;
                is_name = 0;
                continue;
            }
        } else if (is_name) {
            return NULL;
        } else if (*at == '{' || *at == '[') {
            int is_object = *at == '{';
            if (depth++ == DEPTH_MAX)
                return NULL;
            are_objects = are_objects << 1 | is_object;
            at = white(at + 1);
            if (*at != (is_object ? '}' : ']')) {
                is_name = is_object;
                continue;
            }
        } else if ((at = plain_end(at)) == NULL) {
            return NULL;
        }
        for (; depth; depth--, are_objects >>= 1) {
            at = white(at);
            if (*at != (are_objects & 1 ? '}' : ']'))
                break;
            at++;
        }
        if (!depth)
            return at;
        if (*at++ != ',')
            return NULL;
        is_name = are_objects & 1;
    }
}

/* Where the value of an object's next name stands, and in `kind` which name that is, -1 for any other; NULL where the
   object is over or broken, or names one of them again. */
static const byte *member(const byte *at, const byte *stop, const Name *names, unsigned *seen, int *kind)
{
    at = white(at);
    if (*at != '"')
        return NULL;
    const byte *name = at + 1, *end = text_end(name, stop);
    if (end == NULL)
        return NULL;
    size_t size = end - name;
    if (memchr(name, '\\', size) != NULL)
        return NULL;
    *kind = -1;
    for (unsigned bit = 1; names->name != NULL; names++, bit <<= 1)
        if (*name == (byte)names->name[0] && strlen(names->name) == size && memcmp(name, names->name, size) == 0) {
            *kind = names->kind;
            if (*seen & bit)
                return NULL;
            *seen |= bit;
            break;
        }
    at = white(end + 1);
    return *at == ':' ? white(at + 1) : NULL;
}

/* Behind a report of these names, or a part of one; NULL where it says anything else. */
static const byte *report_end(const byte *at, const byte *stop, const Name *names, int64_t *counts)
{
    unsigned seen = 0;
    if (*at++ != '{')
        return NULL;
    for (;;) {
        int kind;
        int64_t count = 0;
        if ((at = member(at, stop, names, &seen, &kind)) == NULL || kind < 0)
            return NULL;
        if (*at == 'n' && kind > TOTAL) {
            if ((at = plain_end(at)) == NULL)
                return NULL;
        } else if (kind == OF_PROMPT || kind == OF_COMPLETION) {
            if ((at = report_end(at, stop, kind == OF_PROMPT ? of_prompt : of_completion, counts)) == NULL)
                return NULL;
        } else {
            const byte *from = at;
            if (*at == '0')
                at++;
            else
                while (is_digit(*at))
                    count = at - from < COUNT_DIGITS_MAX ? count * 10 + (*at++ - '0') : (at++, -1);
            if (at == from || at - from > COUNT_DIGITS_MAX || (kind == NOTHING && count))
                return NULL;
            if (kind < COUNTS)
                counts[kind] = count;
        }
        at = white(at);
        if (*at == '}')
            return at + 1;
        if (*at++ != ',')
            return NULL;
    }
}

/* A text of visible letters and spaces, as it stands; NULL where it is another value, or too long. */
static const byte *name_end(const byte *at)
{
    const byte *from = at + 1;
    if (*at++ != '"')
        return NULL;
    while (*at >= ' ' && *at <= '~' && *at != '"' && *at != '\\')
        at++;
    return *at == '"' && at - from <= NAME_BYTES_MAX ? at : NULL;
}

static PyObject *usage_of(PyObject *self, PyObject *document)
{
    (void)self;
    if (!PyBytes_CheckExact(document))
        Py_RETURN_NONE;
    const byte *at = (const byte *)PyBytes_AS_STRING(document), *stop = at + PyBytes_GET_SIZE(document);
    const byte *texts[TIER + 1] = {NULL}, *ends[TIER + 1] = {NULL};
    int64_t counts[COUNTS] = {-1, -1, -1, 0, 0};
    unsigned seen = 0;
    at = white(at);
    if (*at++ != '{')
        Py_RETURN_NONE;
    for (;;) {
        int kind;
        if ((at = member(at, stop, of_document, &seen, &kind)) == NULL)
            Py_RETURN_NONE;
        if (kind == USAGE) {
            at = report_end(at, stop, of_usage, counts);
        } else if (kind == MODEL || (kind == TIER && *at != 'n')) {
            texts[kind] = at + 1;
            ends[kind] = at = name_end(at);
            at += at != NULL;
        } else if (kind >= 0) {
            at = *at == 'n' ? plain_end(at) : NULL;
        } else {
            at = value_end(at, stop);
        }
        if (at == NULL)
            Py_RETURN_NONE;
        at = white(at);
        if (*at == '}')
            break;
        if (*at++ != ',')
            Py_RETURN_NONE;
    }
    if (white(at + 1) != stop || (counts[PROMPT] < 0 && counts[COMPLETION] < 0))
        Py_RETURN_NONE;
    int64_t prompt = counts[PROMPT] < 0 ? 0 : counts[PROMPT], completion = counts[COMPLETION] < 0 ? 0 : counts[COMPLETION];
    if (counts[TOTAL] >= 0 && counts[TOTAL] != prompt + completion)
        Py_RETURN_NONE;
    if (counts[CACHED] > prompt || counts[REASONING] > completion) /* such a part stands beside */
        Py_RETURN_NONE;
    return Py_BuildValue(
        "(s#z#LLLL)", texts[MODEL] == NULL ? "" : (const char *)texts[MODEL], (Py_ssize_t)(ends[MODEL] - texts[MODEL]),
        (const char *)texts[TIER], (Py_ssize_t)(ends[TIER] - texts[TIER]), (long long)prompt, (long long)completion,
        (long long)counts[CACHED], (long long)counts[REASONING]
    );
}

/* Whether the bytes up to `end` are a text without escapes, and, where nobody reads it (padding), ASCII. */
static int is_simple(const byte *at, const byte *end, int is_text)
{
    for (; at < end; at++)
        if (*at < ' ' || *at == '"' || *at == '\\' || (*at > 0x7F && !is_text))
            return 0;
    return 1;
}

/* A kind of `differs` goes by its first letter: that of `text`, `number` or padding, as stream.py names them. */
static PyObject *event_at(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    (void)self;
    if (nargs != 4 || !PyBytes_CheckExact(args[0]) || !PyLong_CheckExact(args[1]) || !PyBytes_CheckExact(args[2])
        || !PyList_CheckExact(args[3]))
        Py_RETURN_NONE;
    const byte *chunk = (const byte *)PyBytes_AS_STRING(args[0]), *stop = chunk + PyBytes_GET_SIZE(args[0]);
    Py_ssize_t begin = PyLong_AsSsize_t(args[1]), first = PyBytes_GET_SIZE(args[2]);
    if (begin < 0 || begin > stop - chunk || !first || first > stop - chunk - begin
        || memcmp(chunk + begin, PyBytes_AS_STRING(args[2]), first) != 0) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    const byte *place = chunk + begin + first, *text = place, *text_stop = place;
    int64_t number = -1;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[3]); i++) {
        PyObject *part = PyList_GET_ITEM(args[3], i);
        if (!PyTuple_CheckExact(part) || PyTuple_GET_SIZE(part) != 2)
            Py_RETURN_NONE;
        PyObject *kind = PyTuple_GET_ITEM(part, 0), *behind = PyTuple_GET_ITEM(part, 1);
        if (!PyUnicode_Check(kind) || !PyUnicode_GET_LENGTH(kind) || !PyBytes_CheckExact(behind) || !PyBytes_GET_SIZE(behind))
            Py_RETURN_NONE;
        Py_UCS4 letter = PyUnicode_READ_CHAR(kind, 0);
        const byte *end = memmem(place, stop - place, PyBytes_AS_STRING(behind), PyBytes_GET_SIZE(behind));
        if (end == NULL)
            Py_RETURN_NONE;
        if (letter == 'n') {
            if (end == place || end - place > COUNT_DIGITS_MAX || (*place == '0' && end - place > 1))
                Py_RETURN_NONE;
            for (number = 0; place < end; place++) {
                if (!is_digit(*place))
                    Py_RETURN_NONE;
                number = number * 10 + (*place - '0');
            }
        } else {
            if (place[-1] != '"' || *end != '"' || !is_simple(place, end, letter == 't'))
                Py_RETURN_NONE;
            if (letter == 't') {
                text = place;
                text_stop = end;
            }
        }
        place = end + PyBytes_GET_SIZE(behind);
    }
    Py_ssize_t seen = text_stop - text;
    if (!seen || place - chunk - begin > ENVELOPE_BYTES + 4 * seen)
        Py_RETURN_NONE;
    PyObject *said = PyUnicode_DecodeUTF8((const char *)text, seen, NULL);
    if (said == NULL) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(nNL)", (Py_ssize_t)(place - chunk), said, (long long)number);
}

static PyMethodDef methods[] = {
    {"usage_of", usage_of, METH_O, NULL},
    {"event_at", (PyCFunction)(void (*)(void))event_at, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_usage", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__usage(void) { return PyModuleDef_Init(&module); }
