// The depthwise convolution: vectors over channels, four taps at a time.
#include <new>

#include "conv_job.h"
#include "depthwise_vector.h"
#include "halo.h"

namespace fxq {
namespace FXQ_NS {
namespace {

struct DepthwiseState : State {
    Buffer weights;             // [chunk][four taps][part][lane][4], zero behind the last tap and channel
    Buffer start;               // [chunk][part][lane]
    Buffer scale, bias;         // [channel], room for a full last chunk
    Buffer part_scale, part_bias;  // as start
    Buffer offsets;             // of each tap from the window's first, a multiple of four
    int64_t quads = 0;          // groups of four taps
    bool bounded = false;
};

bool allocate(const Operation& op, DepthwiseState* state) {
    const int64_t taps = int64_t(op.record.ints[0]) * op.record.ints[1];
    const int64_t room = (op.output->channels + CHUNK - 1) / CHUNK * CHUNK;
    state->quads = (taps + 3) / 4;
    Buffer* const numbers[5] = {&state->start, &state->scale, &state->bias, &state->part_scale, &state->part_bias};
    for (Buffer* buffer : numbers)
        if (!buffer->allocate(room * 4)) return false;
    return state->weights.allocate(room * state->quads * 4) && state->offsets.allocate(state->quads * 4 * 8);
}

void pack(const Operation& op, DepthwiseState* state) {
    const int64_t taps = int64_t(op.record.ints[0]) * op.record.ints[1], channels = op.output->channels;
    for (int64_t first = 0; first < channels; first += CHUNK) {
        for (int64_t part = 0; part < 4; ++part) {
            for (int64_t lane = 0; lane < LANES; ++lane) {
                // A last chunk that fills half of the vector stands in both halves: it takes two pixels at once.
                const int64_t period = channels - first <= CHUNK / 2 ? CHUNK / 2 : CHUNK;
                const int64_t c = first + channel_of(part, lane) % period, to = first + part * LANES + lane;
                if (c >= channels) continue;
                state->start.as<int32_t>()[to] = op.constant[1].as<int32_t>()[c];
                state->part_scale.as<float>()[to] = state->scale.as<float>()[c] = op.constant[2].as<float>()[c];
                state->part_bias.as<float>()[to] = state->bias.as<float>()[c] = op.constant[3].as<float>()[c];
                int8_t* w = state->weights.as<int8_t>() + (first * state->quads + part * LANES + lane) * 4;
                for (int64_t t = 0; t < taps; ++t)
                    w[t / 4 * CHUNK * 4 + t % 4] = op.constant[0].as<int8_t>()[c * taps + t];
            }
        }
    }
}

const char* prepare(Operation& op) {
    DepthwiseState* state = new (std::nothrow) DepthwiseState;
    op.state = state;
    if (!state || !allocate(op, state)) return "out of memory";
    pack(op, state);
    const int32_t* ints = op.record.ints;
    int64_t* offset = state->offsets.as<int64_t>();  // taps that do not exist read the first one, times zero
    for (int64_t i = 0; i < ints[0]; ++i)
        for (int64_t j = 0; j < ints[1]; ++j)
            *offset++ = i * ints[4] * op.input[0]->row_pitch + j * ints[5] * op.input[0]->pixel_pitch;
    state->packed_bytes = state->weights.bytes();
    state->bounded = values_bounded(op);
    return nullptr;
}

int64_t tasks(const Operation& op, int64_t images, int threads) {
    const int64_t taps = int64_t(op.record.ints[0]) * op.record.ints[1];
    return split(images * op.output->height, int64_t(op.output->width) * op.output->channels * taps, 200000, threads);
}

// One output row of one chunk of channels.
struct Row {
    const DepthwiseState& state;
    Job job;  // of the chunk: block, scale, bias
    int64_t width;
    const uint8_t* x;  // the chunk's first channel of the first window's first tap
    uint8_t* y;        // the first pixel's first channel
    const uint8_t* r;
    int64_t x_step, y_step, r_step;
    const int8_t* weights;
};

// Sums of the window at x: CHUNK channels, or with `Load` another arrangement of input bytes.
template <class Load>
inline void accumulate(const Row& row, const uint8_t* x, I* sum, const Load& load_bytes) {
    const int64_t* offset = row.state.offsets.as<int64_t>();
    const int8_t* w = row.weights;
    for (int64_t part = 0; part < 4; ++part) sum[part] = load_int(row.job.start + part * LANES);
    for (int64_t q = 0; q < row.state.quads; ++q, offset += 4, w += CHUNK * 4) {
        I part[4];
        turn(load_bytes(x + offset[0]), load_bytes(x + offset[1]), load_bytes(x + offset[2]),
             load_bytes(x + offset[3]), part);
        for (int64_t i = 0; i < 4; ++i) sum[i] = dot(sum[i], part[i], load_weights(w + i * CHUNK));
    }
}

void any_row(const Row& row) {
    Pixels one;
    alignas(64) int32_t sums[CHUNK];
    for (int64_t i = 0; i < row.width; ++i) {
        I sum[4];
        accumulate(row, row.x + i * row.x_step, sum, load_chunk);
        for (int64_t part = 0; part < 4; ++part) put_part(sums, part, sum[part]);
        one.y[0] = row.y + i * row.y_step;
        one.r[0] = row.r + i * row.r_step;
        finish_any(row.job, one, 0, 1, sums);
    }
}

#if defined(FXQ_AVX512VNNI)
// u8 results without a residual: packed in registers.
template <int function>
struct PlainFinish {
    I zero, lowest, highest;
    F scale[4], bias[4], inverse;
    Codes codes;
    const float* parameters;
    bool bounded;

    PlainFinish(const fxq_operation& record, const float* part_scale, const float* part_bias, bool bounded_values)
        : zero(_mm512_set1_epi16(static_cast<int16_t>(record.ints[10]))),
          lowest(_mm512_set1_epi8(static_cast<char>(record.ints[11]))),
          highest(_mm512_set1_epi8(static_cast<char>(record.ints[12]))),
          inverse(set(record.floats[2])),
          codes(codes_of(record)),
          parameters(record.floats + 3),
          bounded(bounded_values) {
        for (int64_t i = 0; i < 4; ++i) scale[i] = load(part_scale + 16 * i), bias[i] = load(part_bias + 16 * i);
    }

    I operator()(I* sum) const {
        for (int64_t k = 0; k < 4; ++k) {
            F v = fma(to_float(sum[k]), scale[k], bias[k]);
            if (function != FXQ_IDENTITY) v = mul(apply<function>(parameters, v), inverse);
            if (function != FXQ_IDENTITY || !bounded) v = maximum(minimum(v, codes.high), codes.low);
            sum[k] = to_int(v);
        }
        const I low = _mm512_adds_epi16(_mm512_packs_epi32(sum[0], sum[1]), zero);
        const I high = _mm512_adds_epi16(_mm512_packs_epi32(sum[2], sum[3]), zero);
        return _mm512_max_epu8(_mm512_min_epu8(_mm512_packus_epi16(low, high), highest), lowest);
    }
};

template <class Finish>
void plain_row(const Row& row, const Finish& finish) {
    const __mmask64 mask = row.job.block.width >= 64 ? ~__mmask64(0) : (__mmask64(1) << row.job.block.width) - 1;
    for (int64_t i = 0; i < row.width; ++i) {
        I sum[4];
        accumulate(row, row.x + i * row.x_step, sum, load_chunk);
        _mm512_mask_storeu_epi8(row.y + i * row.y_step + row.job.block.first, mask, finish(sum));
    }
}

// Up to 32 channels: two pixels at once, one in each half of the vectors.
template <class Finish>
void plain_row_by_pairs(const Row& row, const Finish& finish) {
    const __mmask32 mask = row.job.block.width >= 32 ? ~__mmask32(0) : (__mmask32(1) << row.job.block.width) - 1;
    for (int64_t i = 0; i < row.width; i += 2) {
        const bool two = i + 1 < row.width;
        const int64_t step = two ? row.x_step : 0;
        I sum[4];
        accumulate(row, row.x + i * row.x_step, sum, [step](const uint8_t* p) {
            const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
            const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + step));
            return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        });
        const I codes = finish(sum);
        uint8_t* const y = row.y + i * row.y_step + row.job.block.first;
        _mm256_mask_storeu_epi8(y, mask, _mm512_castsi512_si256(codes));
        if (two) _mm256_mask_storeu_epi8(y + row.y_step, mask, _mm512_extracti64x4_epi64(codes, 1));
    }
}
#endif

void run_row(const Operation& op, const Context& context, int64_t n, int64_t line) {
    const DepthwiseState& state = *static_cast<const DepthwiseState*>(op.state);
    const int32_t* ints = op.record.ints;
    const Tensor &x = *op.input[0], &y = *op.output;
    const Tensor* const residual = op.input[1];
    const uint8_t* from = address(context, x, n) + (line * ints[2] - ints[6]) * x.row_pitch - ints[7] * x.pixel_pitch;
    Row row{state, Job(), y.width, nullptr, address(context, y, n) + line * y.row_pitch, nullptr,
            ints[3] * x.pixel_pitch, y.pixel_pitch, 0, nullptr};
    if (residual) {
        row.r = address(context, *residual, n) + line * residual->row_pitch;
        row.r_step = residual->pixel_pitch;
    }
    row.job.record = &op.record;
    row.job.type = y.type;
    for (int32_t first = 0; first < y.channels; first += CHUNK) {
        const int32_t left = y.channels - first;
        row.job.block = {first, left < CHUNK ? left : static_cast<int32_t>(CHUNK), first};
        row.job.start = state.start.as<int32_t>() + first;
        row.job.scale = state.scale.as<float>() + first;
        row.job.bias = state.bias.as<float>() + first;
        row.x = from + first;
        row.weights = state.weights.as<int8_t>() + first * state.quads * 4;
#if defined(FXQ_AVX512VNNI)
        if (y.type == FXQ_U8 && !residual) {
            with_function(ints[9], [&](auto tag) {
                const PlainFinish<decltype(tag)::value> finish(op.record, state.part_scale.as<float>() + first,
                                                               state.part_bias.as<float>() + first, state.bounded);
                left <= CHUNK / 2 ? plain_row_by_pairs(row, finish) : plain_row(row, finish);
            });
            continue;
        }
#endif
        any_row(row);
    }
}

void run(const Operation& op, const Context& context, int64_t tasks, int64_t begin, int64_t end) {
    const Tensor& y = *op.output;
    int64_t line, last, unused;
    piece(context.images * y.height, tasks, begin, &line, &unused);
    piece(context.images * y.height, tasks, end - 1, &unused, &last);
    for (; line < last; ++line) {
        const int64_t n = line / y.height, row = line % y.height;
        run_row(op, context, n, row);
        write_halo(y, address(context, y, n), row, row + 1);
    }
}

}  // namespace

extern const Kernel depthwise_kernel = {prepare, tasks, run};

}  // namespace FXQ_NS
}  // namespace fxq
