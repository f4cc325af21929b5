/* Exercises every function of hawqc.h on the model of model.c. Exits with 0 if all is as the header
 * says, otherwise prints the line of the first disagreement. */
#include "hawqc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                    \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      fprintf(stderr, "%s:%d: not so: %s\nlast error: %s\n", __FILE__, __LINE__, #condition, \
              hawqc_last_error());                                                          \
      exit(1);                                                                              \
    }                                                                                       \
  } while (0)

static int parallel_calls;

/* A caller's pool: runs the tasks backwards on the calling thread. */
static void backwards(void *pool, hawqc_task_fn fn, const hawqc_call *call, int64_t tasks) {
  *(int *)pool += 1;
  for (int64_t task = tasks - 1; task >= 0; task--) fn(call, task, tasks);
}

static void describe(const hawqc_model *model) {
  hawqc_tensor_info info;
  CHECK(hawqc_model_input_count(model) == 1 && hawqc_model_output_count(model) == 2);
  CHECK(hawqc_model_input(model, HAWQC_BORDER, 0, &info) == HAWQC_OK);
  CHECK(strcmp(info.name, "x") == 0 && info.type == HAWQC_F32 && info.rank == 3);
  CHECK(info.shape[0] == 1 && info.shape[1] == 2 && info.shape[2] == 3);
  CHECK(info.elements == 6 && info.bytes == 24);
  CHECK(info.scale_count == 1 && info.scale[0] == 0.5f && info.zero_point == 7);
  CHECK(hawqc_model_input(model, HAWQC_INTEGER, 0, &info) == HAWQC_OK);
  CHECK(info.type == HAWQC_U8 && info.rank == 3 && info.shape[1] == 3 && info.shape[2] == 2 && info.bytes == 6);
  CHECK(hawqc_model_output(model, HAWQC_BORDER, 1, &info) == HAWQC_OK);
  CHECK(strcmp(info.name, "z") == 0 && info.type == HAWQC_I32 && info.rank == 1 && info.bytes == 8);
  CHECK(info.scale_count == 0 && info.scale == NULL);
  CHECK(hawqc_model_output(model, HAWQC_INTEGER, 0, &info) == HAWQC_OK && info.type == HAWQC_I32);
  CHECK(hawqc_model_input(model, HAWQC_BORDER, 1, &info) == HAWQC_USAGE);
  CHECK(hawqc_model_input(model, (hawqc_entry)5, 0, &info) == HAWQC_USAGE);
  CHECK(strstr(hawqc_model_manifest(model), "\"hawqc.manifest\"") != NULL);
}

static void run(hawqc_session *session, int threads) {
  float x[6] = {1, 2, 3, 4, 5, -6}, y[6];
  uint8_t xi[6] = {1, 2, 3, 4, 5, 255};
  int32_t yi[6], z[2];
  hawqc_input in = {x, sizeof x};
  hawqc_output out[2] = {{y, sizeof y}, {z, sizeof z}};
  CHECK(hawqc_session_threads(session) == (size_t)threads);
  CHECK(hawqc_session_run(session, HAWQC_BORDER, &in, 1, out, 2) == HAWQC_OK);
  for (int i = 0; i < 6; i++) CHECK(y[i] == 2 * x[i]);
  CHECK(z[0] == 9 && z[1] == threads);

  in.data = xi, in.bytes = sizeof xi;
  out[0].data = yi, out[0].bytes = sizeof yi;
  CHECK(hawqc_session_run(session, HAWQC_INTEGER, &in, 1, out, 2) == HAWQC_OK);
  for (int i = 0; i < 6; i++) CHECK(yi[i] == 2 * xi[i]);
  CHECK(z[0] == 270);

  CHECK(hawqc_session_run(session, HAWQC_BORDER, &in, 1, out, 2) == HAWQC_INVALID_INPUT);
  CHECK(strstr(hawqc_last_error(), "input 0 \"x\"") != NULL);
  CHECK(hawqc_session_run(session, HAWQC_INTEGER, &in, 0, out, 2) == HAWQC_USAGE);
  CHECK(hawqc_session_run(session, HAWQC_INTEGER, NULL, 1, out, 2) == HAWQC_USAGE);
  CHECK(hawqc_session_run(NULL, HAWQC_INTEGER, &in, 1, out, 2) == HAWQC_USAGE);
  CHECK(hawqc_session_run(session, (hawqc_entry)2, &in, 1, out, 2) == HAWQC_USAGE);
  out[1].data = (char *)yi + 4;
  CHECK(hawqc_session_run(session, HAWQC_INTEGER, &in, 1, out, 2) == HAWQC_USAGE);
  CHECK(strstr(hawqc_last_error(), "overlaps") != NULL);
  out[1].data = (char *)z + 1;
  CHECK(hawqc_session_run(session, HAWQC_INTEGER, &in, 1, out, 2) == HAWQC_USAGE);
  CHECK(strstr(hawqc_last_error(), "aligned") != NULL);
  out[1].data = NULL;
  CHECK(hawqc_session_run(session, HAWQC_INTEGER, &in, 1, out, 2) == HAWQC_USAGE);
}

int main(int argc, char **argv) {
  hawqc_model *model = NULL;
  hawqc_session *session = NULL;
  CHECK(argc == 3);
  CHECK(hawqc_abi_version() == HAWQC_ABI_VERSION);
  CHECK(strlen(hawqc_version()) > 0);
  CHECK(strcmp(hawqc_last_error(), "") == 0);

  CHECK(hawqc_model_open("no-such-file.so", &model) == HAWQC_INVALID_INPUT && model == NULL);
  CHECK(strstr(hawqc_last_error(), "no-such-file.so") != NULL);
  CHECK(hawqc_model_open(NULL, &model) == HAWQC_USAGE);
  CHECK(hawqc_model_open(argv[1], NULL) == HAWQC_USAGE);
  CHECK(hawqc_model_open(argv[2], &model) == HAWQC_WRONG_CPU && model == NULL);
  CHECK(strstr(hawqc_last_error(), "no-such-feature") != NULL);
  CHECK(hawqc_model_open(argv[1], &model) == HAWQC_OK);
  describe(model);

  hawqc_session_options options = {0};
  options.threads = -1;
  CHECK(hawqc_session_create(model, &options, &session) == HAWQC_USAGE && session == NULL);
  options.threads = 100000;
  CHECK(hawqc_session_create(model, &options, &session) == HAWQC_USAGE && session == NULL);
  CHECK(hawqc_session_create(NULL, &options, &session) == HAWQC_USAGE);
  for (options.threads = 1; options.threads <= 3; options.threads++) {
    CHECK(hawqc_session_create(model, &options, &session) == HAWQC_OK);
    run(session, (int)options.threads);
    hawqc_session_destroy(session);
  }
  options.parallel_for = backwards;
  options.pool = &parallel_calls;
  options.threads = 0;
  session = NULL;
  CHECK(hawqc_session_create(model, &options, &session) == HAWQC_USAGE && session == NULL);
  options.threads = 4;
  CHECK(hawqc_session_create(model, &options, &session) == HAWQC_OK);
  hawqc_model_close(model); /* the session stays usable */
  run(session, 4);
  CHECK(parallel_calls == 2);
  hawqc_session_destroy(session);

  CHECK(hawqc_model_open(argv[1], &model) == HAWQC_OK);
  CHECK(hawqc_session_create(model, NULL, &session) == HAWQC_OK);
  CHECK(hawqc_session_threads(session) >= 1);
  hawqc_session_destroy(session);
  hawqc_model_close(model);

  hawqc_model_close(NULL);
  hawqc_session_destroy(NULL);
  CHECK(hawqc_model_manifest(NULL) == NULL && hawqc_model_input_count(NULL) == 0);
  CHECK(hawqc_model_output_count(NULL) == 0 && hawqc_session_threads(NULL) == 0);
  return 0;
}
