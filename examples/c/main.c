/* Runs a compiled model and prints the largest entries of each output.
 *
 *     ./run-model MODEL.so [options]
 *       --input FILE    raw little-endian elements of the first input (repeat for more inputs);
 *                       without it inputs are filled with random numbers
 *       --integer       call the integer entry point: integers in, integers out
 *       --threads N     number of threads (default: HAWQC_THREADS, otherwise all CPUs)
 *       --runs N        run N times and print the mean time
 *       --top N         entries to print of each output (default 5)
 *       --seed N        seed of the random inputs (default 1)
 */
#define _POSIX_C_SOURCE 200809L
#include "hawqc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const type_names[] = {"f32", "u8", "i8", "i16", "i32", "i64"};

static void fail(const char *what, const char *why) {
  fprintf(stderr, "run-model: %s: %s\n", what, why);
  exit(HAWQC_INVALID_INPUT);
}

static void check(hawqc_status status) {
  if (status == HAWQC_OK) return;
  fprintf(stderr, "run-model: %s\n", hawqc_last_error());
  exit(status);
}

static void *allocate(size_t bytes) {
  void *memory = calloc(bytes > 0 ? bytes : 1, 1);
  if (memory == NULL) fail("memory", "exhausted");
  return memory;
}

static void print_tensor(const char *role, const hawqc_tensor_info *info) {
  printf("%s %s: %s[", role, info->name, type_names[info->type]);
  for (size_t axis = 0; axis < info->rank; axis++) printf("%s%" PRId64, axis > 0 ? "," : "", info->shape[axis]);
  printf("]\n");
}

/* xorshift64*: the same numbers on every machine. */
static uint32_t next_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return (uint32_t)((*state * UINT64_C(2685821657736338717)) >> 32);
}

/* Floats uniform in [-1, 1); integers with random bytes. */
static void fill_random(const hawqc_tensor_info *info, void *data, uint64_t *state) {
  if (info->type == HAWQC_F32) {
    float *values = data;
    for (size_t i = 0; i < info->elements; i++) values[i] = (float)(next_random(state) >> 8) / 8388608.0f - 1.0f;
  } else {
    uint8_t *bytes = data;
    for (size_t i = 0; i < info->bytes; i++) bytes[i] = (uint8_t)(next_random(state) >> 24);
  }
}

static void fill_from_file(const hawqc_tensor_info *info, void *data, const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail(path, "cannot be opened");
  size_t found = fread(data, 1, info->bytes, file);
  int more = fgetc(file) != EOF;
  fclose(file);
  if (found != info->bytes || more) {
    char why[128];
    snprintf(why, sizeof why, "has %s than the %zu bytes of the input", more ? "more" : "fewer", info->bytes);
    fail(path, why);
  }
}

static double value_at(const hawqc_tensor_info *info, const void *data, size_t index) {
  switch (info->type) {
    case HAWQC_F32: return ((const float *)data)[index];
    case HAWQC_U8: return ((const uint8_t *)data)[index];
    case HAWQC_I8: return ((const int8_t *)data)[index];
    case HAWQC_I16: return ((const int16_t *)data)[index];
    case HAWQC_I32: return ((const int32_t *)data)[index];
    case HAWQC_I64: return (double)((const int64_t *)data)[index];
  }
  return 0;
}

static void print_top(const hawqc_tensor_info *info, const void *data, size_t top) {
  print_tensor("output", info);
  uint8_t *printed = allocate(info->elements);
  for (size_t rank = 0; rank < top && rank < info->elements; rank++) {
    size_t best = info->elements;
    for (size_t i = 0; i < info->elements; i++) {
      if (!printed[i] && (best == info->elements || value_at(info, data, i) > value_at(info, data, best))) best = i;
    }
    printed[best] = 1;
    printf("  %8zu  %.9g\n", best, value_at(info, data, best));
  }
  free(printed);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static long long number(const char *option, const char *text, long long least) {
  char *end = NULL;
  long long value = text != NULL ? strtoll(text, &end, 10) : 0;
  if (text == NULL || end == text || *end != '\0' || value < least) {
    fprintf(stderr, "run-model: %s needs a number of at least %lld\n", option, least);
    exit(HAWQC_USAGE);
  }
  return value;
}

int main(int argc, char **argv) {
  if (argc < 2 || argv[1][0] == '-') {
    fprintf(stderr,
            "usage: %s MODEL.so [--input FILE].. [--integer] [--threads N] [--runs N] [--top N] [--seed N]\n",
            argv[0]);
    return HAWQC_USAGE;
  }
  hawqc_entry entry = HAWQC_BORDER;
  hawqc_session_options options = {0};
  const char **files = allocate((size_t)argc * sizeof *files);
  size_t file_count = 0, top = 5;
  long long runs = 1;
  uint64_t seed = 1;
  for (int i = 2; i < argc; i++) {
    const char *option = argv[i];
    if (strcmp(option, "--integer") == 0) {
      entry = HAWQC_INTEGER;
      continue;
    }
    const char *value = argv[++i]; /* argv[argc] is NULL */
    if (strcmp(option, "--input") == 0 && value != NULL) {
      files[file_count++] = value;
    } else if (strcmp(option, "--threads") == 0) {
      options.threads = number(option, value, 1);
    } else if (strcmp(option, "--runs") == 0) {
      runs = number(option, value, 1);
    } else if (strcmp(option, "--top") == 0) {
      top = (size_t)number(option, value, 0);
    } else if (strcmp(option, "--seed") == 0) {
      seed = (uint64_t)number(option, value, 0);
    } else {
      fprintf(stderr, "run-model: unknown option, or no value after it: %s\n", option);
      return HAWQC_USAGE;
    }
  }

  hawqc_model *model;
  hawqc_session *session;
  check(hawqc_model_open(argv[1], &model));
  check(hawqc_session_create(model, &options, &session));

  hawqc_tensor_info info;
  size_t input_count = hawqc_model_input_count(model), output_count = hawqc_model_output_count(model);
  if (file_count > input_count) fail("--input", "given more often than the model has inputs");
  hawqc_input *inputs = allocate(input_count * sizeof *inputs);
  hawqc_output *outputs = allocate(output_count * sizeof *outputs);
  uint64_t random_state = UINT64_C(0x9e3779b97f4a7c15) ^ (seed << 1); /* odd, hence not zero */
  for (size_t i = 0; i < input_count; i++) {
    check(hawqc_model_input(model, entry, i, &info));
    print_tensor("input", &info);
    void *data = allocate(info.bytes);
    if (i < file_count)
      fill_from_file(&info, data, files[i]);
    else
      fill_random(&info, data, &random_state);
    inputs[i] = (hawqc_input){data, info.bytes};
  }
  for (size_t i = 0; i < output_count; i++) {
    check(hawqc_model_output(model, entry, i, &info));
    outputs[i] = (hawqc_output){allocate(info.bytes), info.bytes};
  }

  double start = seconds();
  for (long long run = 0; run < runs; run++)
    check(hawqc_session_run(session, entry, inputs, input_count, outputs, output_count));
  double mean = (seconds() - start) / (double)runs;

  for (size_t i = 0; i < output_count; i++) {
    check(hawqc_model_output(model, entry, i, &info));
    print_top(&info, outputs[i].data, top);
  }
  if (runs > 1)
    printf("mean of %lld runs on %zu threads: %.6g ms\n", runs, hawqc_session_threads(session), mean * 1e3);

  for (size_t i = 0; i < input_count; i++) free((void *)inputs[i].data);
  for (size_t i = 0; i < output_count; i++) free(outputs[i].data);
  free(inputs);
  free(outputs);
  free(files);
  hawqc_session_destroy(session);
  hawqc_model_close(model);
  return 0;
}
