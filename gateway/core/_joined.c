/* Concatenate the parts of a message, and read the numbers of one. `packed`, `said` and `numbers` are `pack_parts`,
   `say_parts` and `unpack_numbers` of joined.py, the definition. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define NUMBER_SIZE 8 /* of a double, and of an integer in an answer */
#define DIGITS_MAX 20 /* of 64 bits, with a sign */
#define ROOM 1024     /* for what is no longer, before it is an object */

/* The bytes of a text; NULL where it is none, or has no UTF-8. */
static const char *text_of(PyObject *part, Py_ssize_t *size)
{
    if (PyBytes_Check(part)) {
        *size = PyBytes_GET_SIZE(part);
        return PyBytes_AS_STRING(part);
    }
    if (!PyUnicode_Check(part)) {
        PyErr_Format(PyExc_TypeError, "a part is bytes, a text or a whole number, not %.100s", Py_TYPE(part)->tp_name);
        return NULL;
    }
    return PyUnicode_AsUTF8AndSize(part, size);
}

/* A number, -1 with an error where it has more than 64 bits. Most have one digit of Python's or two. */
static inline long long value_of(PyObject *number)
{
#if PY_VERSION_HEX < 0x030C0000 /* later ones have the sign elsewhere */
    const digit *digits = ((PyLongObject *)number)->ob_digit;
    Py_ssize_t size = Py_SIZE(number);

    if (size >= 0 && size <= 2)
        return size == 0 ? 0 : size == 1 ? digits[0] : digits[0] | (long long)digits[1] << PyLong_SHIFT;
#endif
    return PyLong_AsLongLong(number);
}

/* Little-endian, whichever way round this machine has it; NULL where a number is beyond all doubles. */
static char *pack(char *to, PyObject *number)
{
    long long value = value_of(number);
    double real = (double)value;

    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        real = PyLong_AsDouble(number);
        if (real == -1.0 && PyErr_Occurred())
            return NULL;
    }
#if PY_LITTLE_ENDIAN
    memcpy(to, &real, NUMBER_SIZE);
#else
    uint64_t bits;
    memcpy(&bits, &real, NUMBER_SIZE);
    for (int i = 0; i < NUMBER_SIZE; i++)
        to[i] = (char)(bits >> 8 * i);
#endif
    return to + NUMBER_SIZE;
}

/* Its digits; NULL where it has more than 64 bits. */
static char *tell(char *to, PyObject *number)
{
    long long value = value_of(number);
    unsigned long long left = value < 0 ? 0ULL - (unsigned long long)value : (unsigned long long)value;
    char digits[DIGITS_MAX], *at = digits + DIGITS_MAX;

    if (value == -1 && PyErr_Occurred())
        return NULL;
    do
        *--at = (char)('0' + left % 10);
    while (left /= 10);
    if (value < 0)
        *--at = '-';
    memcpy(to, at, (size_t)(digits + DIGITS_MAX - at));
    return to + (digits + DIGITS_MAX - at);
}

static PyObject *packed(PyObject *module, PyObject *const *parts, Py_ssize_t count)
{
    Py_ssize_t size = 0, length;
    PyObject *joined;
    const char *text;
    char *at;

    (void)module;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyLong_Check(parts[i]))
            length = NUMBER_SIZE;
        else if (text_of(parts[i], &length) == NULL)
            return NULL;
        size += length;
    }
    joined = PyBytes_FromStringAndSize(NULL, size);
    at = joined == NULL ? NULL : PyBytes_AS_STRING(joined);
    for (Py_ssize_t i = 0; at != NULL && i < count; i++) {
        if (PyLong_Check(parts[i])) {
            at = pack(at, parts[i]);
        } else {
            text = text_of(parts[i], &length);
            memcpy(at, text, (size_t)length);
            at += length;
        }
    }
    if (at == NULL)
        Py_CLEAR(joined);
    return joined;
}

static PyObject *said(PyObject *module, PyObject *const *parts, Py_ssize_t count)
{
    char room[ROOM], *begin = room, *at = room, *end = room + ROOM;
    PyObject *joined = NULL;

    (void)module;
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *text = NULL;
        Py_ssize_t length = DIGITS_MAX, done = at - begin;
        if (!PyLong_Check(parts[i]) && (text = text_of(parts[i], &length)) == NULL)
            goto failed;
        if (length > end - at) {
            Py_ssize_t size = 2 * (done + length);
            if (joined == NULL && (joined = PyBytes_FromStringAndSize(NULL, size)) != NULL)
                memcpy(PyBytes_AS_STRING(joined), room, (size_t)done);
            else if (joined != NULL)
                _PyBytes_Resize(&joined, size);
            if (joined == NULL)
                return NULL;
            begin = PyBytes_AS_STRING(joined);
            at = begin + done;
            end = begin + size;
        }
        if (text == NULL) {
            at = tell(at, parts[i]);
            if (at == NULL)
                goto failed;
        } else if (length) {
            memcpy(at, text, (size_t)length);
            at += length;
        }
    }
    if (joined == NULL)
        return PyBytes_FromStringAndSize(room, at - room);
    _PyBytes_Resize(&joined, at - begin);
    return joined;
failed:
    Py_XDECREF(joined);
    return NULL;
}

static PyObject *numbers(PyObject *module, PyObject *packed)
{
    const unsigned char *at;
    Py_ssize_t count;
    PyObject *found, *number;

    (void)module;
    if (!PyBytes_Check(packed))
        return PyErr_Format(PyExc_TypeError, "numbers are in bytes, not %.100s", Py_TYPE(packed)->tp_name);
    at = (const unsigned char *)PyBytes_AS_STRING(packed);
    count = PyBytes_GET_SIZE(packed) / NUMBER_SIZE;
    found = PyTuple_New(count);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++, at += NUMBER_SIZE) {
        uint64_t bits = 0;
        for (int j = 0; j < NUMBER_SIZE; j++)
            bits |= (uint64_t)at[j] << 8 * j;
        number = PyLong_FromLongLong((long long)bits);
        if (number == NULL)
            Py_CLEAR(found);
        else
            PyTuple_SET_ITEM(found, i, number);
    }
    return found;
}

static PyMethodDef methods[] = {
    {"packed", (PyCFunction)(void (*)(void))packed, METH_FASTCALL, "Parts in a row, numbers as doubles."},
    {"said", (PyCFunction)(void (*)(void))said, METH_FASTCALL, "Parts in a row, numbers by their digits."},
    {"numbers", numbers, METH_O, "The whole numbers of 64 bits in bytes."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_joined", "Parts of a message in one row of bytes.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__joined(void) { return PyModuleDef_Init(&definition); }
