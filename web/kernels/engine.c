/* Runs a linked program: a list of operations over one shared memory, one call per step, with any number of threads.
 *
 * The loader (web/sessions/cpu-link.js) writes the State and the Ops; their word order is its contract with this file.
 * Threads claim tasks of an operation (or of a run of operations that have one task each) from a ticket and go on when
 * all its tasks are done; nobody waits for a thread that holds no task, so a sleeping or dead helper costs nothing. A
 * ticket carries the step's number: a helper that is late for a step finds nothing to claim, and none claims once the
 * step is over.
 */
#include "attention.h"
#include "linear.h"
#include "low_rank.h"

/* Of the words below and of what is exported; cpu-link.js has the same number. A page that got its script and its
 * kernels from different builds (an old cache) says so instead of running nonsense. */
enum { LAYOUT = 8 };
int EXPORT(layout)(void) { return LAYOUT; }

enum { EMBED, NORM, QUANTIZE, LINEAR, MAP, STORE_KV, ATTEND, JOIN, PICK, TOP_K, LOW_RANK, LAYER_NORM };
enum { ALL_TOKENS = 0, ASKED = 1 };

typedef struct {
  int32_t kind, rows; /* rows: ALL_TOKENS or ASKED */
  union {
    struct { Weights w; Rows y; } embed;
    struct { Rows x, skip, sum, y; const float *bias, *weight, *shift; float epsilon; int32_t width, groups; } norm;
    struct { Rows x; int32_t width, blocks; int16_t *values; float *scale, *sum; } quantize;
    struct { Weights w; Activations x; Rows y; } linear;
    struct { Rows a, b, y; int32_t activation, combine; float scalar; int32_t width; } map;
    struct { Cache cache; Rotary rotary; Attention attention; Rows a, b; float *parts; } attend; /* keys, values or queries, out */
    struct { Rows x, y; int32_t width; } pick;
    struct { Rows x; float *values; int32_t *ids; int32_t width, k; } top_k;
    struct { Rows x, y; const float *a, *b; int32_t width, ranks, outputs; } low_rank; /* ranks 0: no adapter */
    int32_t words[30];
  };
} Op;

typedef struct {
  int64_t next; /* step number << 32 | next unclaimed task */
  int32_t done, pad;
} Ticket;

typedef struct {
  int32_t step; /* even: a step's number, may run; odd: over, or the next one being written */
  int32_t tokens, position, asked, threads, count;
  const Op *ops;
  Ticket *tickets;
  const int32_t *ids;
  uint8_t *scratch;
  int32_t scratch_bytes, patience_seconds;
} State;

_Static_assert(sizeof(Op) == 128, "the loader writes operations of 32 words");
_Static_assert(sizeof(State) == 48, "the loader writes a state of 12 words");

INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
INLINE int lesser(int a, int b) { return a < b ? a : b; }
INLINE int rows_of(const State *s, const Op *op) { return op->rows == ASKED ? s->asked : s->tokens; }

/* The rotary tables of this step. */
INLINE Rotary rotary_of(const State *s, const Op *op) {
  Rotary rotary = op->attend.rotary;
  if (rotary.switch_at && s->position + s->tokens > rotary.switch_at)
    rotary.cos += rotary.second, rotary.sin += rotary.second;
  return rotary;
}

/* Whether an attention is shared out span by span: that of one token, which has few heads, over a long context. */
INLINE int is_split(const State *s, const Op *op) {
  return s->threads > 1 && s->tokens == 1 && attention_spans(&op->attend.attention, 1, s->position) > 1;
}

/* How many pieces an operation falls into: enough that threads end together, not so many that claiming shows. */
static int task_count(const State *s, const Op *op) {
  int rows = rows_of(s, op);
  switch (op->kind) {
    case LINEAR: return s->threads == 1 ? 1 : lesser(op->linear.w.outputs / PANEL, s->threads * 4);
    case ATTEND:
      return attention_tiles(&op->attend.cache, &op->attend.attention, rows) *
             (is_split(s, op) ? attention_spans(&op->attend.attention, 1, s->position) : 1);
    case JOIN: return is_split(s, op) ? lesser(op->attend.attention.heads, s->threads) : 0;
    case TOP_K: return rows;
    case LOW_RANK: return op->low_rank.ranks ? lesser(rows, s->threads) : 0;
    case QUANTIZE: return lesser(ceil_div(rows, TILE), s->threads);
    default: return lesser(rows, s->threads);
  }
}

static void run_task(const State *s, const Op *op, int task, int tasks, uint8_t *scratch) {
  int rows = rows_of(s, op), first = rows * task / tasks, last = rows * (task + 1) / tasks;
  switch (op->kind) {
    case EMBED:
      for (int r = first; r < last; r++)
        embed(&op->embed.w, s->ids[r], op->embed.y.at + r * op->embed.y.row_floats);
      return;
    case NORM:
      return rms_norm(op->norm.x, op->norm.skip, op->norm.bias, op->norm.weight, op->norm.epsilon, op->norm.sum,
                      op->norm.y, op->norm.width, op->norm.groups, first, last);
    case LAYER_NORM:
      return layer_norm(op->norm.x, op->norm.skip, op->norm.bias, op->norm.weight, op->norm.shift, op->norm.epsilon,
                        op->norm.sum, op->norm.y, op->norm.width, op->norm.groups, first, last);
    case QUANTIZE: {
      int stride = rows == 1 ? 1 : TILE, tiles = ceil_div(rows, stride);
      return quantize(op->quantize.x, op->quantize.width, op->quantize.blocks, op->quantize.values, op->quantize.scale,
                      op->quantize.sum, stride, rows, tiles * task / tasks, tiles * (task + 1) / tasks);
    }
    case LINEAR: {
      int panels = op->linear.w.outputs / PANEL;
      return linear(&op->linear.w, op->linear.x, op->linear.y.at, op->linear.y.row_floats, rows, panels * task / tasks,
                    panels * (task + 1) / tasks, scratch);
    }
    case MAP:
      return map(op->map.activation, op->map.a, op->map.combine, op->map.b, op->map.scalar, op->map.y, op->map.width,
                 first, last);
    case STORE_KV: {
      Rotary rotary = rotary_of(s, op);
      return store_kv(&op->attend.cache, &rotary, op->attend.a, op->attend.b, s->position, first, last);
    }
    case ATTEND: {
      Rotary rotary = rotary_of(s, op);
      if (is_split(s, op))
        return attend_span(&op->attend.cache, &rotary, &op->attend.attention, op->attend.a, op->attend.parts,
                           s->position, task, scratch);
      return attend(&op->attend.cache, &rotary, &op->attend.attention, op->attend.a, op->attend.b, rows, s->position,
                    task, scratch);
    }
    case JOIN: {
      int heads = op->attend.attention.heads;
      return join(&op->attend.cache, &op->attend.attention, op->attend.parts, op->attend.b, s->position,
                  heads * task / tasks, heads * (task + 1) / tasks);
    }
    case PICK:
      for (int r = first; r < last; r++) {
        const float *from = op->pick.x.at + (s->tokens - s->asked + r) * op->pick.x.row_floats;
        for (int i = 0; i < op->pick.width; i += 4) store(op->pick.y.at + r * op->pick.y.row_floats + i, load(from + i));
      }
      return;
    case TOP_K:
      return top_k(op->top_k.x.at + task * op->top_k.x.row_floats, op->top_k.width, op->top_k.k,
                   op->top_k.values + task * op->top_k.k, op->top_k.ids + task * op->top_k.k);
    case LOW_RANK:
      return low_rank(op->low_rank.x, op->low_rank.a, op->low_rank.b, op->low_rank.width, op->low_rank.ranks,
                      op->low_rank.outputs, op->low_rank.y, first, last, (float *)scratch);
  }
}

/* The next task of a ticket, or -1 if all are claimed or the step is over. */
static int claim(Ticket *ticket, int32_t step, int tasks) {
  int64_t seen = __atomic_load_n(&ticket->next, __ATOMIC_ACQUIRE);
  while ((int32_t)(seen >> 32) == step && (int32_t)seen < tasks)
    if (__atomic_compare_exchange_n(&ticket->next, &seen, seen + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      return (int32_t)seen;
  return -1;
}

/* Looks at a ticket before a thread lies down: about as long as one decoding task takes, for waking up costs more. */
enum { SPINS = 20000 };

/* The operations from number `i` on that one thread does in one go: several that have one task each, or one. */
INLINE int run_end(const State *s, int i) {
  int end = i + 1;
  if (task_count(s, s->ops + i) <= 1)
    while (end < s->count && task_count(s, s->ops + end) <= 1) end++;
  return end;
}

/* Runs the step that `now` is a copy of; `shared` tells whether it is still the current one. 0, or 1 if a thread that
 * holds a task has not answered for as long as the state's patience. */
static int run(State *shared, const State *now, int thread) {
  uint8_t *scratch = now->scratch + thread * now->scratch_bytes;
  for (int first = 0, end; first < now->count; first = end) {
    end = run_end(now, first);
    int tasks = end > first + 1 ? 1 : task_count(now, now->ops + first);
    Ticket *ticket = now->tickets + first;
    for (int task = 0;; task++) {
      /* After the step `ranks` may change, and with it what counts as a task: looked at after they were counted. */
      if (thread && __atomic_load_n(&shared->step, __ATOMIC_ACQUIRE) != now->step) return 0;
      if (now->threads > 1) task = claim(ticket, now->step, tasks);
      if (task < 0 || task == tasks) break;
      for (int i = first; i < end; i++) {
        int all = task_count(now, now->ops + i);
        if (all > 0) run_task(now, now->ops + i, task, all, scratch);
      }
      if (now->threads > 1 && __atomic_add_fetch(&ticket->done, 1, __ATOMIC_ACQ_REL) == tasks)
        __builtin_wasm_memory_atomic_notify(&ticket->done, -1);
    }
    if (now->threads == 1) continue;
    for (int spins = 0, waits = 0;;) {
      int32_t done = __atomic_load_n(&ticket->done, __ATOMIC_ACQUIRE);
      if (done == tasks) break;
      if (__atomic_load_n(&shared->step, __ATOMIC_ACQUIRE) != now->step) return 0;
      if (spins++ < SPINS) continue;
      if (waits++ == now->patience_seconds * 10) return 1;
      __builtin_wasm_memory_atomic_wait32(&ticket->done, done, 100 * 1000 * 1000);
    }
  }
  return 0;
}

/* One step over the ids the loader has put in place: 0 when done, 1 when a helper died in the middle of its task; the
 * step may then be done again on one thread. */
int EXPORT(step)(State *s, int tokens, int position, int asked) {
  int32_t writing = s->step | 1;
  if (s->threads > 1) __atomic_store_n(&s->step, writing, __ATOMIC_SEQ_CST);
  s->tokens = tokens, s->position = position, s->asked = asked;
  if (s->threads > 1) {
    int32_t number = writing + 1;
    for (int i = 0; i < s->count; i++) {
      __atomic_store_n(&s->tickets[i].done, 0, __ATOMIC_SEQ_CST);
      __atomic_store_n(&s->tickets[i].next, (int64_t)number << 32, __ATOMIC_SEQ_CST);
    }
    __atomic_store_n(&s->step, number, __ATOMIC_SEQ_CST);
    __builtin_wasm_memory_atomic_notify(&s->step, -1);
  }
  State now = *s;
  int died = run(s, &now, 0);
  if (now.threads > 1) __atomic_store_n(&s->step, now.step + 1, __ATOMIC_SEQ_CST);
  return died;
}

/* A helper's life: sleep until a step begins, help, sleep again. Ends only with its worker. */
void EXPORT(serve)(State *s, int thread) {
  for (int32_t last = 0;;) {
    int32_t number = __atomic_load_n(&s->step, __ATOMIC_SEQ_CST);
    if (number == last || number & 1) {
      __builtin_wasm_memory_atomic_wait32(&s->step, number, -1);
      continue;
    }
    State now = *s;
    if (__atomic_load_n(&s->step, __ATOMIC_SEQ_CST) != number || now.step != number) continue;
    last = number;
    run(s, &now, thread);
  }
}
