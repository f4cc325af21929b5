/* hawqc.h: running compiled models from C or C++.
 *
 * Two things are declared here:
 *   1. The binary interface of a compiled model (hawqc_call and the three symbols a model exports).
 *      Only needed to call a model without this library.
 *   2. The library: open a model, ask what it wants, make a session, run it.
 *
 *     hawqc_model *model;
 *     hawqc_session *session;
 *     if (hawqc_model_open("model.so", &model) != HAWQC_OK ||
 *         hawqc_session_create(model, NULL, &session) != HAWQC_OK) {
 *       fprintf(stderr, "%s\n", hawqc_last_error());
 *       exit(1);
 *     }
 *     hawqc_input in = {image, sizeof image};
 *     hawqc_output out = {scores, sizeof scores};
 *     hawqc_session_run(session, HAWQC_BORDER, &in, 1, &out, 1);
 *
 * Rules that hold throughout:
 *   - A function that can fail returns hawqc_status; when it is not HAWQC_OK, hawqc_last_error()
 *     says what went wrong and no output argument was changed.
 *   - A null pointer where one is not allowed is HAWQC_USAGE, never a crash.
 *   - A model may be used by several threads at once. A session belongs to one thread at a time;
 *     using it from two at once is HAWQC_USAGE.
 *   - Pointers handed out belong to the library; each function says how long they are valid.
 */
#ifndef HAWQC_H
#define HAWQC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. The binary interface of a compiled model, version 1 -------------------------------- */

#define HAWQC_ABI_VERSION 1
#define HAWQC_ARENA_ALIGN 64

struct hawqc_call;

/* One task of a step. Tasks of one step are independent of each other. */
typedef void (*hawqc_task_fn)(const struct hawqc_call *call, int64_t task, int64_t tasks);

/* Runs fn(call, t, tasks) exactly once for every t in 0..tasks-1, in any order and on any threads,
 * and returns when all are done and what they wrote is visible to the calling thread. */
typedef void (*hawqc_parallel_for_fn)(void *pool, hawqc_task_fn fn, const struct hawqc_call *call, int64_t tasks);

typedef void (*hawqc_step_fn)(void *user, int64_t step);

/* Everything one run needs; every field takes 8 bytes. */
typedef struct hawqc_call {
  const void *const *inputs;          /* one pointer per input: row-major, type and shape as in the manifest */
  void *const *outputs;               /* likewise; outputs overlap neither inputs nor each other */
  uint8_t *arena;                     /* arena_bytes bytes, 64-byte aligned, contents undefined before and after */
  int64_t threads;                    /* >= 1: largest number of tasks a step may be split into */
  hawqc_parallel_for_fn parallel_for; /* not used, and may be NULL, when threads == 1 */
  void *pool;                         /* first argument of parallel_for */
  hawqc_step_fn on_step;              /* NULL, or called before each step and once after the last */
  void *on_step_user;                 /* first argument of on_step */
} hawqc_call;

#if defined(__cplusplus)
#define HAWQC_ASSERT_(condition) static_assert(condition, #condition)
#else
#define HAWQC_ASSERT_(condition) _Static_assert(condition, #condition)
#endif
HAWQC_ASSERT_(sizeof(hawqc_call) == 64);
HAWQC_ASSERT_(offsetof(hawqc_call, inputs) == 0);
HAWQC_ASSERT_(offsetof(hawqc_call, outputs) == 8);
HAWQC_ASSERT_(offsetof(hawqc_call, arena) == 16);
HAWQC_ASSERT_(offsetof(hawqc_call, threads) == 24);
HAWQC_ASSERT_(offsetof(hawqc_call, parallel_for) == 32);
HAWQC_ASSERT_(offsetof(hawqc_call, pool) == 40);
HAWQC_ASSERT_(offsetof(hawqc_call, on_step) == 48);
HAWQC_ASSERT_(offsetof(hawqc_call, on_step_user) == 56);

/* A compiled model exports, and imports nothing:
 *   hawqc_manifest      bytes: "HAWQCM1\0", then n as 8 little-endian bytes, then n bytes of JSON
 *   hawqc_run           hawqc_run_fn: tensors in the model's own types and layouts
 *   hawqc_run_integer   hawqc_run_fn: integers in, integers out */
typedef void (*hawqc_run_fn)(const hawqc_call *call);

/* ---- 2. The library ------------------------------------------------------------------------ */

/* The values are the exit codes of the hawqc command for the same failures. */
typedef enum hawqc_status {
  HAWQC_OK = 0,
  HAWQC_INTERNAL = 1,      /* a fault of the library or the system */
  HAWQC_USAGE = 2,         /* an argument makes no sense: null pointer, bad index, session in use */
  HAWQC_INVALID_INPUT = 3, /* a file is missing, damaged or no model; a buffer has the wrong size; no memory */
  HAWQC_WRONG_CPU = 6      /* the model needs a CPU this machine is not; nothing of it was run */
} hawqc_status;

typedef enum hawqc_type {
  HAWQC_F32 = 0,
  HAWQC_U8 = 1,
  HAWQC_I8 = 2,
  HAWQC_I16 = 3,
  HAWQC_I32 = 4,
  HAWQC_I64 = 5
} hawqc_type;

/* Which of a model's two functions to describe or run. */
typedef enum hawqc_entry {
  HAWQC_BORDER = 0, /* the model's own types and layouts, e.g. f32 NCHW */
  HAWQC_INTEGER = 1 /* already quantised integers in (NHWC), the last integers out */
} hawqc_entry;

typedef struct hawqc_model hawqc_model;
typedef struct hawqc_session hawqc_session;

/* One input or output. Pointers are valid until the model is closed. */
typedef struct hawqc_tensor_info {
  const char *name;
  const int64_t *shape;    /* rank extents, slowest first; data is row-major */
  size_t rank;
  size_t elements;         /* product of the shape */
  size_t bytes;            /* elements times the size of one */
  const float *scale;      /* how integers stand for reals: real = scale * (integer - zero_point); */
  size_t scale_count;      /* 1 for the whole tensor, or one per entry of the last axis, or 0: none */
  int32_t zero_point;
  hawqc_type type;
} hawqc_tensor_info;

/* How a session gets its threads. Zero-initialise and set what you need; NULL means all defaults. */
typedef struct hawqc_session_options {
  int64_t threads;                    /* 0: HAWQC_THREADS if set, otherwise the CPUs this process may use */
  hawqc_parallel_for_fn parallel_for; /* NULL: the library's own thread pool. Otherwise threads must be set; */
  void *pool;                         /* called with this, from the thread that runs the session */
} hawqc_session_options;

typedef struct hawqc_input {
  const void *data; /* aligned to the element */
  size_t bytes;     /* must equal hawqc_tensor_info.bytes */
} hawqc_input;

typedef struct hawqc_output {
  void *data;   /* aligned to the element; overlaps no input and no other output */
  size_t bytes; /* must equal hawqc_tensor_info.bytes */
} hawqc_output;

/* Version of the library, e.g. "0.1.0". Valid for ever. */
const char *hawqc_version(void);

/* Version of the binary interface the library supports: compare with HAWQC_ABI_VERSION. */
uint32_t hawqc_abi_version(void);

/* Why the last function that failed on this thread failed; "" if none has. Never NULL. Valid until
 * the next function of this library fails on this thread. */
const char *hawqc_last_error(void);

/* Opens a compiled model. Its machine code is trusted: open only what you would run. */
hawqc_status hawqc_model_open(const char *path, hawqc_model **model);

/* Closes a model; NULL is allowed. Sessions of it stay usable. */
void hawqc_model_close(hawqc_model *model);

/* The manifest as JSON: everything the model says of itself. Valid until the model is closed;
 * NULL only if model is NULL. */
const char *hawqc_model_manifest(const hawqc_model *model);

/* Number of inputs and outputs; 0 if model is NULL. */
size_t hawqc_model_input_count(const hawqc_model *model);
size_t hawqc_model_output_count(const hawqc_model *model);

/* Describes input or output number index as the given entry wants it. */
hawqc_status hawqc_model_input(const hawqc_model *model, hawqc_entry entry, size_t index, hawqc_tensor_info *info);
hawqc_status hawqc_model_output(const hawqc_model *model, hawqc_entry entry, size_t index, hawqc_tensor_info *info);

/* Makes a session: working memory and threads for running the model. */
hawqc_status hawqc_session_create(const hawqc_model *model, const hawqc_session_options *options,
                                  hawqc_session **session);

/* Ends a session; NULL is allowed. */
void hawqc_session_destroy(hawqc_session *session);

/* Number of threads the session uses; 0 if session is NULL. */
size_t hawqc_session_threads(const hawqc_session *session);

/* Runs the model once. The counts must be the model's, the buffers of the sizes it says. */
hawqc_status hawqc_session_run(hawqc_session *session, hawqc_entry entry, const hawqc_input *inputs,
                               size_t input_count, const hawqc_output *outputs, size_t output_count);

#ifdef __cplusplus
}
#endif

#endif /* HAWQC_H */
