// From sources of real values to results: activation, then codes or float32. Shared by all pointwise operations.
//
// A source gives the real value of elements i .. i + LANES - 1 (full) or of the first n of them (part).
#ifndef FXQ_FINISH_H
#define FXQ_FINISH_H

#include "functions.h"
#include "result.h"

namespace fxq {
namespace FXQ_NS {

// (float(q) - zero) * scale of u8 codes.
struct CodeSource {
    const uint8_t* data;
    F zero, scale;
    F full(int64_t i) const { return mul(sub(to_float(bytes(data + i)), zero), scale); }
    F part(int64_t i, int64_t n) const { return mul(sub(to_float(bytes_partial(data + i, n)), zero), scale); }
};

struct RealSource {
    const float* data;
    F full(int64_t i) const { return load(data + i); }
    F part(int64_t i, int64_t n) const { return load_partial(data + i, n); }
};

// One value for all elements.
struct SameSource {
    F value;
    F full(int64_t) const { return value; }
    F part(int64_t, int64_t) const { return value; }
};

// Not a number becomes zero.
struct NumberSource {
    const float* data;
    static F number(F v) { return select(is_nan(v), set(0.0f), v); }
    F full(int64_t i) const { return number(load(data + i)); }
    F part(int64_t i, int64_t n) const { return number(load_partial(data + i, n)); }
};

template <class A, class B>
struct SumSource {
    A a;
    B b;
    F full(int64_t i) const { return add(a.full(i), b.full(i)); }
    F part(int64_t i, int64_t n) const { return add(a.part(i, n), b.part(i, n)); }
};

template <class A, class B>
struct ProductSource {
    A a;
    B b;
    F full(int64_t i) const { return mul(a.full(i), b.full(i)); }
    F part(int64_t i, int64_t n) const { return mul(a.part(i, n), b.part(i, n)); }
};

// v -> f(v), or the code of f(v) * inverse.
struct Finish {
    bool to_codes;
    int32_t function;
    const float* params;
    F inverse;
    Codes codes;

    // Of ints 9 .. 12 and floats 2, 3 ..
    Finish(const fxq_operation& record, const Tensor& output)
        : to_codes(output.type == FXQ_U8),
          function(record.ints[9]),
          params(record.floats + 3),
          inverse(set(record.floats[2])),
          codes(codes_of(record)) {}

    Finish(bool to_codes, float inverse, const Codes& codes)
        : to_codes(to_codes), function(FXQ_IDENTITY), params(nullptr), inverse(set(inverse)), codes(codes) {}

    template <class Source>
    void operator()(const Source& source, uint8_t* out, int64_t count) const {
        if (function == FXQ_IDENTITY) return plain(source, out, count);
        alignas(64) float values[BLOCK];
        for (int64_t i = 0; i < count; i += BLOCK) {
            const int64_t n = count - i < BLOCK ? count - i : BLOCK;
            const int64_t whole = n / LANES * LANES;
            for (int64_t k = 0; k < whole; k += LANES) store(values + k, source.full(i + k));
            if (whole < n) store(values + whole, source.part(i + whole, n - whole));
            apply_all(function, params, values, n);
            plain(RealSource{values}, out + i * (to_codes ? 1 : 4), n);
        }
    }

   private:
    static constexpr int64_t BLOCK = 512;

    template <class Source>
    void plain(const Source& source, uint8_t* out, int64_t count) const {
        const int64_t whole = count / LANES * LANES;
        if (to_codes) {
            for (int64_t i = 0; i < whole; i += LANES) put_bytes(out + i, codes(mul(source.full(i), inverse)));
            if (whole < count)
                put_bytes_partial(out + whole, codes(mul(source.part(whole, count - whole), inverse)), count - whole);
            return;
        }
        float* real = reinterpret_cast<float*>(out);
        for (int64_t i = 0; i < whole; i += LANES) store(real + i, source.full(i));
        if (whole < count) store_partial(real + whole, source.part(whole, count - whole), count - whole);
    }
};

}  // namespace FXQ_NS
}  // namespace fxq
#endif
