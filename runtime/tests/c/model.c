/* A hand-written model for the runtime's tests. It stands for what the compiler produces:
 * border:  x f32[1,2,3] -> y f32[6] = SCALE * x, z i32[2] = {sum of x, call->threads}
 * integer: x u8[1,3,2]  -> y i32[6] = SCALE * x, z likewise
 * Step 0 splits its six elements over the tasks and keeps SCALE * x as i32 at arena offset 64.
 * Step 1 adds up. The manifest is compiled in from manifest.inc. */
#include "hawqc.h"

#ifndef SCALE
#define SCALE 2
#endif

#ifndef OMIT_MANIFEST
const unsigned char hawqc_manifest[] = {
#include "manifest.inc"
};
#endif

#ifdef IMPORT
extern void imported_function(void);
#endif

#ifdef CONSTRUCTOR
static volatile int loaded;
__attribute__((constructor)) static void at_load(void) { loaded = 1; }
#endif

static void step(const hawqc_call *call, int64_t index) {
  if (call->on_step) call->on_step(call->on_step_user, index);
}

static void split(const hawqc_call *call, hawqc_task_fn task) {
  int64_t tasks = call->threads < 6 ? call->threads : 6;
  if (call->threads == 1)
    task(call, 0, 1);
  else
    call->parallel_for(call->pool, task, call, tasks);
}

static void scale_border(const hawqc_call *call, int64_t task, int64_t tasks) {
  const float *x = call->inputs[0];
  float *y = call->outputs[0];
  int32_t *kept = (int32_t *)(call->arena + 64);
  for (int64_t i = task * 6 / tasks; i < (task + 1) * 6 / tasks; i++) {
    kept[i] = (int32_t)(SCALE * x[i]);
    y[i] = SCALE * x[i];
  }
}

static void scale_integer(const hawqc_call *call, int64_t task, int64_t tasks) {
  const uint8_t *x = call->inputs[0];
  int32_t *y = call->outputs[0];
  int32_t *kept = (int32_t *)(call->arena + 64);
  for (int64_t i = task * 6 / tasks; i < (task + 1) * 6 / tasks; i++) kept[i] = y[i] = SCALE * x[i];
}

static void finish(const hawqc_call *call) {
  const int32_t *kept = (const int32_t *)(call->arena + 64);
  int32_t *z = call->outputs[1];
  step(call, 1);
  z[0] = 0;
  for (int i = 0; i < 6; i++) z[0] += kept[i] / SCALE;
  z[1] = (int32_t)call->threads;
  step(call, 2);
}

void hawqc_run(const hawqc_call *call) {
#ifdef IMPORT
  imported_function();
#endif
  step(call, 0);
  split(call, scale_border);
  finish(call);
}

#ifndef OMIT_RUN_INTEGER
void hawqc_run_integer(const hawqc_call *call) {
  step(call, 0);
  split(call, scale_integer);
  finish(call);
}
#endif
