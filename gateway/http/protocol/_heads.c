/* Heads in one pass. `cut_head(data, head_bytes_max)` is `cut_head` of request.py; `read_answer_head(data,
   head_bytes_max)` is `read_answer_head` of answer.py, for usual answers. Each returns None where Python has to look:
   Python is the definition. `head_bytes_max` are the bytes that a head may have in front of its blank line. No line of
   a request is judged here: who remembers lines has judged them. Each line of an answer is checked. Both go by names
   that they were told before, by `know_credentials(names)` and `know_fields(names, prefixes)`, each with its kind.

   It is linear in time, allocates nothing but the answer, and calls nothing that could fail in between. A bytes
   object ends in NUL, and a line is looked at only up to its LF. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) && !defined(WITHOUT_SSE2)
#define SSE2
#include <emmintrin.h>
#endif

/* As request.py says them; a test compares. */
#define CUT_LINES_MAX 16
#define LENGTH_DIGITS_MAX 15
#define OURS "x-tollkeeper-"
#define UNITS "x-tollkeeper-units"
#define NAMES_MAX 64
#define NAME_BYTES_MAX 64

typedef struct {
    char name[NAME_BYTES_MAX]; /* in lower case */
    Py_ssize_t size;
    int kind, next; /* the next one that begins so, behind its place; 0 where there is none */
} Name;

typedef struct {
    Name names[NAMES_MAX];
    int count;
    unsigned char first[256]; /* the place behind the last one that begins so */
} Names;

static Names credentials, fields, prefixes;

#define IDS_BYTES (32 + 1 + 16 + 1 + 2) /* of a traceparent, behind its version */

enum { KEPT, SIZE, PROVING, SAYING, TRACE };

typedef struct {
    const char *at; /* its first byte; it ends in CRLF */
    Py_ssize_t size; /* without that */
    int kind;
} Line;

static inline int folded(char c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }

/* Whether a line begins with these letters, in any case. */
static inline int begins(const char *at, Py_ssize_t size, const char *letters, Py_ssize_t many)
{
    if (size < many)
        return 0;
    for (Py_ssize_t i = 0; i < many; i++)
        if (folded(at[i]) != letters[i])
            return 0;
    return 1;
}

static inline int is_named(const char *at, Py_ssize_t size, const char *name, Py_ssize_t many)
{
    return size > many && at[many] == ':' && begins(at, size, name, many);
}

/* Add a name and its kind; whether there is room. */
static int know(Names *known, PyObject *name, long kind)
{
    if (!PyBytes_CheckExact(name) || PyBytes_GET_SIZE(name) == 0 || PyBytes_GET_SIZE(name) > NAME_BYTES_MAX
        || known->count == NAMES_MAX || (kind == -1 && PyErr_Occurred())) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "more than 64 names, or one that is not 1 to 64 bytes");
        return 0;
    }
    Name *one = &known->names[known->count++];
    one->size = PyBytes_GET_SIZE(name);
    one->kind = (int)kind;
    memcpy(one->name, PyBytes_AS_STRING(name), one->size);
    one->next = known->first[(unsigned char)one->name[0]];
    known->first[(unsigned char)one->name[0]] = known->count;
    return 1;
}

static PyObject *know_credentials(PyObject *self, PyObject *names)
{
    (void)self;
    memset(&credentials, 0, sizeof credentials);
    for (Py_ssize_t i = 0; PyTuple_CheckExact(names) && i < PyTuple_GET_SIZE(names); i++)
        if (!know(&credentials, PyTuple_GET_ITEM(names, i), PROVING))
            return NULL;
    Py_RETURN_NONE;
}

static PyObject *know_fields(PyObject *self, PyObject *args)
{
    PyObject *told[2], *name, *kind;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!", &PyDict_Type, &told[0], &PyDict_Type, &told[1]))
        return NULL;
    for (int i = 0; i < 2; i++) {
        Names *known = i ? &prefixes : &fields;
        Py_ssize_t place = 0;
        memset(known, 0, sizeof *known);
        while (PyDict_Next(told[i], &place, &name, &kind))
            if (!know(known, name, PyLong_AsLong(kind)))
                return NULL;
    }
    Py_RETURN_NONE;
}

#define PLAIN_BYTES ((Py_ssize_t)sizeof "content-length: " - 1)

/* Whether this is a content-length that is spelled plainly. */
static inline int is_length(const char *at, Py_ssize_t size)
{
    return size >= PLAIN_BYTES
        && (memcmp(at, "Content-Length: ", PLAIN_BYTES) == 0 || memcmp(at, "content-length: ", PLAIN_BYTES) == 0);
}

/* The number of plain digits, at most LENGTH_DIGITS_MAX of them, or -1. */
static inline int64_t decimal_of(const char *from, const char *to)
{
    int64_t number = 0;
    if (from == to || to - from > LENGTH_DIGITS_MAX)
        return -1;
    for (; from < to; from++) {
        if (*from < '0' || *from > '9')
            return -1;
        number = number * 10 + (*from - '0');
    }
    return number;
}

/* Whether these are digits of an id, not all of them 0. */
static inline int is_id(const char *at, Py_ssize_t size)
{
    int any = 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        if (!((at[i] >= '0' && at[i] <= '9') || (at[i] >= 'a' && at[i] <= 'f')))
            return 0;
        any |= at[i] != '0';
    }
    return any;
}

/* Whether this is a trace in the usual form (traces.py). */
static inline int is_trace(const char *at, Py_ssize_t size)
{
    Py_ssize_t before = size - IDS_BYTES;
    const char *ids = at + before;
    if (before != (Py_ssize_t)sizeof "traceparent: 00-" - 1 && before != (Py_ssize_t)sizeof "traceparent:00-" - 1)
        return 0;
    if ((at[0] != 't' && at[0] != 'T') || memcmp(at + 1, "raceparent:", 11) != 0
        || memcmp(at + 12, &" 00-"[before == 15], before - 12) != 0)
        return 0;
    if (ids[32] != '-' || ids[49] != '-' || !is_id(ids, 32) || !is_id(ids + 33, 16))
        return 0;
    return is_id(ids + 50, 2) || (ids[50] == '0' && ids[51] == '0');
}

static inline int kind_of(const char *at, Py_ssize_t size, int has_trace)
{
    int first = folded(at[0]);
    if (first == 'c' && is_length(at, size))
        return SIZE;
    if (first == 't' && !has_trace && is_trace(at, size))
        return TRACE;
    if (first == OURS[0] && begins(at, size, OURS, sizeof OURS - 1))
        return is_named(at, size, UNITS, sizeof UNITS - 1) || memchr(at, ':', size) == NULL ? KEPT : SAYING;
    if (credentials.first[first & 0xFF])
        for (int i = 0; i < credentials.count; i++)
            if (is_named(at, size, credentials.names[i].name, credentials.names[i].size))
                return PROVING;
    return KEPT;
}

/* A head without the lines that are cut, or without its length alone. */
static PyObject *without(const char *data, Py_ssize_t end, const Line *cuts, int count, int length_alone)
{
    Py_ssize_t left = end;
    for (int i = 0; i < count; i++)
        if (!length_alone || cuts[i].kind == SIZE)
            left -= cuts[i].size + 2;
    PyObject *made = PyBytes_FromStringAndSize(NULL, left);
    if (made == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(made);
    const char *from = data;
    for (int i = 0; i < count; i++)
        if (!length_alone || cuts[i].kind == SIZE) {
            memcpy(to, from, cuts[i].at - from);
            to += cuts[i].at - from;
            from = cuts[i].at + cuts[i].size + 2;
        }
    memcpy(to, from, data + end - from);
    return made;
}

/* Lines as one text; `size` is what they have with an end each. */
static PyObject *joined(const Line *lines, int count, Py_ssize_t size)
{
    PyObject *made = PyBytes_FromStringAndSize(NULL, size > 2 ? size - 2 : 0);
    if (made == NULL || size <= 2)
        return made;
    char *to = PyBytes_AS_STRING(made);
    for (int i = 0; i < count; i++) {
        if (i) {
            *to++ = '\r';
            *to++ = '\n';
        }
        memcpy(to, lines[i].at, lines[i].size);
        to += lines[i].size;
    }
    return made;
}

/* The lines of one kind as one text. */
static PyObject *text_of(const Line *cuts, int count, int kind)
{
    Line lines[CUT_LINES_MAX + 1];
    Py_ssize_t size = 0;
    int many = 0;
    lines[0].size = 0;
    for (int i = 0; i < count; i++)
        if (cuts[i].kind == kind) {
            size += cuts[i].size + 2;
            lines[many++] = cuts[i];
        }
    return joined(lines, many, size);
}

/* A tuple of these, which it takes over. */
static PyObject *tuple_of(PyObject **parts, int count)
{
    PyObject *found = PyTuple_New(count);
    int whole = found != NULL;
    for (int i = 0; i < count; i++)
        whole &= parts[i] != NULL;
    for (int i = 0; i < count; i++) {
        if (whole)
            PyTuple_SET_ITEM(found, i, parts[i]);
        else
            Py_XDECREF(parts[i]);
    }
    if (!whole)
        Py_CLEAR(found);
    return found;
}

/* Whether there are bytes and a maximum, which is set; else an error says what is expected. */
static int is_asked(PyObject *const *args, Py_ssize_t nargs, const char *expected, Py_ssize_t *head_bytes_max)
{
    if (nargs != 2 || !PyBytes_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, expected);
        return 0;
    }
    *head_bytes_max = PyLong_AsSsize_t(args[1]);
    return *head_bytes_max != -1 || !PyErr_Occurred();
}

static PyObject *cut_head(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t head_bytes_max;
    (void)self;
    if (!is_asked(args, nargs, "cut_head(data: bytes, head_bytes_max: int)", &head_bytes_max))
        return NULL;
    const char *data = PyBytes_AS_STRING(args[0]), *at = data, *stop = data + PyBytes_GET_SIZE(args[0]);
    Line cuts[CUT_LINES_MAX + 1];
    int count = 0, has_trace = 0;
    int64_t length = -1;
    for (;;) {
        const char *line_end = memchr(at, '\n', stop - at);
        if (line_end == NULL || line_end == at || line_end[-1] != '\r')
            Py_RETURN_NONE;
        Py_ssize_t size = line_end - 1 - at;
        if (at == data) { /* the request line */
            if (size == 0)
                Py_RETURN_NONE;
        } else if (size == 0) {
            break;
        } else {
            int kind = kind_of(at, size, has_trace);
            if (kind != KEPT) {
                if (count > CUT_LINES_MAX)
                    Py_RETURN_NONE;
                cuts[count].at = at;
                cuts[count].size = size;
                cuts[count++].kind = kind;
                if (kind == SIZE && (length >= 0 || (length = decimal_of(at + PLAIN_BYTES, at + size)) < 0))
                    Py_RETURN_NONE;
                has_trace |= kind == TRACE;
            }
        }
        at = line_end + 1;
    }
    if (at - 2 - data > head_bytes_max || count - (length >= 0) > CUT_LINES_MAX)
        Py_RETURN_NONE;
    Py_ssize_t end = at + 2 - data;
    PyObject *parts[8] = {
        without(data, end, cuts, count, 1), without(data, end, cuts, count, 0), PyLong_FromLongLong(length),
        text_of(cuts, count, PROVING), text_of(cuts, count, SAYING), text_of(cuts, count, TRACE), NULL,
        PyLong_FromSsize_t(end),
    };
    if (parts[5] != NULL)
        parts[6] = has_trace
            ? PyUnicode_DecodeLatin1(PyBytes_AS_STRING(parts[5]) + PyBytes_GET_SIZE(parts[5]) - IDS_BYTES, 32, NULL)
            : PyUnicode_New(0, 0);
    return tuple_of(parts, 8);
}

/* What the fields of an answer are; a name that was not told passes. As answer.py says; a test compares. */
enum {
    PASS, DROP, CONNECTION, LENGTH, CODING, CONTENT_TYPE, CONTENT_ENCODING, REQUEST_ID, PLAIN_REQUEST_ID, USAGE_AMOUNT,
    DATE, LIMITS, KINDS, /* and others, which are left to Python as that of usage is */
};
#define ANSWER_LINES_MAX 64
/* Of these the limits pass: that is for Python, as are interim answers. */
#define TOO_MANY_REQUESTS 429
#define OVERLOADED 529

static const unsigned char is_token[256] = {
    ['!'] = 1, ['#'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['*'] = 1, ['+'] = 1, ['-'] = 1, ['.'] = 1,
    ['^'] = 1, ['_'] = 1, ['`'] = 1, ['|'] = 1, ['~'] = 1, ['0' ... '9'] = 1, ['A' ... 'Z'] = 1, ['a' ... 'z'] = 1,
};

static inline int is_text(const unsigned char *at, const unsigned char *end)
{
#ifdef SSE2
    const __m128i space = _mm_set1_epi8(' '), tab = _mm_set1_epi8('\t'), del = _mm_set1_epi8(0x7F);
    for (; end - at >= 16; at += 16) {
        __m128i these = _mm_loadu_si128((const __m128i *)at);
        __m128i fine = _mm_or_si128(_mm_cmpeq_epi8(_mm_max_epu8(these, space), these), _mm_cmpeq_epi8(these, tab));
        if (_mm_movemask_epi8(_mm_andnot_si128(_mm_cmpeq_epi8(these, del), fine)) != 0xFFFF)
            return 0;
    }
#endif
    for (; at < end; at++)
        if ((*at < ' ' && *at != '\t') || *at == 0x7F)
            return 0;
    return 1;
}

static inline int field_of(const char *at, Py_ssize_t size)
{
    int first = folded(at[0]) & 0xFF;
    const Name *one;
    for (int i = fields.first[first]; i; i = one->next) {
        one = &fields.names[i - 1];
        if (one->size == size && begins(at, size, one->name, size))
            return one->kind;
    }
    for (int i = prefixes.first[first]; i; i = one->next) {
        one = &prefixes.names[i - 1];
        if (begins(at, size, one->name, one->size))
            return one->kind;
    }
    return PASS;
}

static PyObject *read_answer_head(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t head_bytes_max;
    (void)self;
    if (!is_asked(args, nargs, "read_answer_head(data: bytes, head_bytes_max: int)", &head_bytes_max))
        return NULL;
    const char *data = PyBytes_AS_STRING(args[0]), *at = data, *stop = data + PyBytes_GET_SIZE(args[0]);
    Line kept[ANSWER_LINES_MAX], values[KINDS] = {{0}}, limits[ANSWER_LINES_MAX];
    int count = 0, limit_count = 0, status = 0;
    Py_ssize_t text_size = 0, limits_size = 0;
    int64_t length = -1;
    for (;;) {
        const char *line_end = memchr(at, '\n', stop - at);
        if (line_end == NULL || line_end == at || line_end[-1] != '\r')
            Py_RETURN_NONE;
        const char *end = line_end - 1, *colon = at;
        int kind = PASS;
        if (at == data) {
            if (end - at < 13 || memcmp(at, "HTTP/1.1 ", 9) != 0 || at[9] < '2' || at[9] > '9' || at[10] < '0'
                || at[10] > '9' || at[11] < '0' || at[11] > '9' || at[12] != ' ')
                Py_RETURN_NONE;
            status = (at[9] - '0') * 100 + (at[10] - '0') * 10 + at[11] - '0';
            if (status == TOO_MANY_REQUESTS || status == OVERLOADED)
                Py_RETURN_NONE;
            colon += 12;
        } else if (end == at) {
            break;
        } else {
            while (is_token[(unsigned char)*colon])
                colon++;
            if (colon == at || *colon != ':')
                Py_RETURN_NONE;
            kind = field_of(at, colon - at);
        }
        if (!is_text((const unsigned char *)colon + 1, (const unsigned char *)end))
            Py_RETURN_NONE;
        if (kind != PASS && kind != DROP) {
            const char *from = colon + 1, *to = end;
            if (kind < 0 || kind >= KINDS || kind == USAGE_AMOUNT)
                Py_RETURN_NONE;
            Line *value = &values[kind];
            if (kind != LIMITS && value->at != NULL && kind != DATE)
                Py_RETURN_NONE;
            while (from < to && (*from == ' ' || *from == '\t'))
                from++;
            while (from < to && (to[-1] == ' ' || to[-1] == '\t'))
                to--;
            value->at = from;
            value->size = to - from;
            if (kind == LENGTH) {
                if ((length = decimal_of(from, to)) < 0)
                    Py_RETURN_NONE;
            } else if ((kind == CODING && (to - from != 7 || !begins(from, 7, "chunked", 7)))
                || (kind == CONNECTION && (to - from != 10 || memcmp(from, "keep-alive", 10) != 0))) {
                Py_RETURN_NONE;
            } else if (kind == LIMITS) {
                if (limit_count == ANSWER_LINES_MAX)
                    Py_RETURN_NONE;
                limits[limit_count].at = at;
                limits[limit_count++].size = end - at;
                limits_size += end - at + 2;
            }
        }
        if (kind == PASS || kind == CONTENT_TYPE || kind == CONTENT_ENCODING || kind == DATE) {
            Line *last = count ? &kept[count - 1] : NULL;
            text_size += end - at + 2;
            if (last != NULL && last->at + last->size + 2 == at) {
                last->size += end - at + 2;
            } else if (count == ANSWER_LINES_MAX) {
                Py_RETURN_NONE;
            } else {
                kept[count].at = at;
                kept[count++].size = end - at;
            }
        }
        at = line_end + 1;
    }
    if (at - 2 - data > head_bytes_max || (length >= 0 && values[CODING].at != NULL))
        Py_RETURN_NONE;
    PyObject *parts[] = {
        PyLong_FromSsize_t(at + 2 - data), PyLong_FromLong(status), joined(kept, count, text_size),
        PyLong_FromLongLong(length), PyBool_FromLong(values[CODING].at != NULL), PyBool_FromLong(values[DATE].at != NULL),
        joined(&values[CONTENT_TYPE], 1, values[CONTENT_TYPE].size + 2),
        joined(&values[CONTENT_ENCODING], 1, values[CONTENT_ENCODING].size + 2),
        joined(&values[REQUEST_ID], 1, values[REQUEST_ID].size + 2),
        joined(&values[PLAIN_REQUEST_ID], 1, values[PLAIN_REQUEST_ID].size + 2),
        joined(limits, limit_count, limits_size),
    };
    return tuple_of(parts, sizeof parts / sizeof *parts);
}

/* The first bytes of a bytearray: as many as were asked for, and no more than there are. */
static PyObject *first_of(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    (void)self;
    if (nargs != 2 || !PyByteArray_CheckExact(args[0]) || !PyLong_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "first_of(buffer: bytearray, size: int)");
        return NULL;
    }
    Py_ssize_t size = PyLong_AsSsize_t(args[1]);
    if (size < 0 || size > PyByteArray_GET_SIZE(args[0])) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "more than there is");
        return NULL;
    }
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(args[0]), size);
}

static PyMethodDef methods[] = {
    {"know_credentials", know_credentials, METH_O, NULL},
    {"know_fields", know_fields, METH_VARARGS, NULL},
    {"first_of", (PyCFunction)(void (*)(void))first_of, METH_FASTCALL, NULL},
    {"read_answer_head", (PyCFunction)(void (*)(void))read_answer_head, METH_FASTCALL, NULL},
    {"cut_head", (PyCFunction)(void (*)(void))cut_head, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_heads", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__heads(void) { return PyModuleDef_Init(&module); }
