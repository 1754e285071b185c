// Activations of real values, one IEEE operation after another, so that every instruction set gives the same bits.
// operations.md states the formulas; the coefficients are minimax fits made for this file.
#ifndef FXQ_FUNCTIONS_H
#define FXQ_FUNCTIONS_H

#include "abi.h"
#include "gelu.h"
#include "silu.h"

namespace fxq {
namespace FXQ_NS {

// c[0] + x * (c[1] + x * (... + x * c[count - 1])), fused.
template <int count>
inline F polynomial(F x, const float (&c)[count]) {
    F sum = set(c[count - 1]);
    for (int i = count - 2; i >= 0; --i) sum = fma(sum, x, set(c[i]));
    return sum;
}

// e^x for x <= 0; zero below -87.3 (no subnormal results). Relative error below 2^-22.
inline F exponential(F x) {
    constexpr float C[] = {0.6931471824645996f,    0.24022647738456726f,   0.055503323674201965f,
                           0.00961843691766262f,   0.0013398873852565885f, 0.00015353361959569156f};
    const F lowest = set(-87.3f), magic = set(12582912.0f), log2e = set(1.4426950216293335f);
    const F bounded = maximum(x, lowest);
    const F shifted = fma(bounded, log2e, magic);  // its low bits hold the rounded exponent
    const F whole = sub(shifted, magic);
    F part = fma(bounded, log2e, negate(whole));
    part = fma(bounded, set(1.9259629911266175e-8f), part);  // log2(e) to 48 bits
    const F mantissa = fma(polynomial(part, C), part, set(1.0f));
    const F power = as_float(add(as_int(mantissa), shift_left(as_int(shifted), 23)));
    return select(less(x, lowest), set(0.0f), power);
}

inline F clip(F v, F lowest, F highest) { return minimum(maximum(v, lowest), highest); }

// 1/2 + x * P(x^2) / Q(x^2) within 1.6e-7, x bounded to where the result is exactly 0 or 1: a division, no exponential.
inline F sigmoid(F v) {
    constexpr float P[] = {0.2499999701976776f, 0.008358248509466648f, 5.4477826779475436e-05f, 7.996803219612048e-08f,
                           1.2875201772788447e-11f};
    constexpr float Q[] = {1.0f, 0.11676623672246933f, 0.0016151234740391374f, 5.111537575430702e-06f,
                           3.008850057995005e-09f};
    const F x = clip(v, set(-18.0f), set(18.0f)), square = mul(x, x);
    const F result = fma(x, div(polynomial(square, P), polynomial(square, Q)), set(0.5f));
    return clip(result, set(0.0f), set(1.0f));
}

inline F hyperbolic_tangent(F v) {
    constexpr float C[] = {-0.3333328366279602f, 0.13331490755081177f, -0.05374349653720856f, 0.02065058797597885f,
                           -0.005717045161873102f};
    const F one = set(1.0f), size = absolute(v), square = mul(v, v);
    const F small = fma(mul(size, square), polynomial(square, C), size);
    const F e = exponential(mul(size, set(-2.0f)));
    const F result = select(less(size, set(0.625f)), small, div(sub(one, e), add(one, e)));
    return select(less(v, set(0.0f)), negate(result), result);
}

// tanh(softplus(v)) * v, with e = exp(-|v|): (1 + 2e) / (1 + 2e + 2e^2) above zero, (e^2 + 2e) / (e^2 + 2e + 2) below.
inline F mish(F v) {
    const F e = exponential(negate(absolute(v))), square = mul(e, e), two = set(2.0f);
    const M below = less(v, set(0.0f));
    const F top = select(below, fma(e, two, square), fma(e, two, set(1.0f)));
    const F rest = select(below, two, mul(square, two));
    return mul(v, div(top, add(top, rest)));
}

// An activation known when compiling, with what it keeps over a loop. `params`: see enum fxq_function.
template <int function>
struct Activation {
    const float* params;

    explicit Activation(const float* parameters) : params(parameters) {}

    F operator()(F v) const {
        const F zero = set(0.0f);
        if (function == FXQ_SIGMOID) return sigmoid(v);
        if (function == FXQ_TANH) return hyperbolic_tangent(v);
        if (function == FXQ_GELU_TANH) {  // v/2 (1 + tanh(u)) = v sigmoid(2u)
            const F cubic = fma(mul(v, v), set(0.0713548162726f), set(1.5957691216057308f));
            return mul(v, sigmoid(mul(v, cubic)));
        }
        if (function == FXQ_HARDSWISH)
            return mul(mul(v, clip(add(v, set(3.0f)), zero, set(6.0f))), set(1.0f / 6.0f));
        if (function == FXQ_HARDSIGMOID) return mul(clip(add(v, set(3.0f)), zero, set(6.0f)), set(1.0f / 6.0f));
        if (function == FXQ_LEAKY_RELU) return select(less(v, zero), mul(v, set(params[0])), v);
        if (function == FXQ_ELU)
            return select(less(v, zero), mul(set(params[0]), sub(exponential(minimum(v, zero)), set(1.0f))), v);
        if (function == FXQ_CLIP) return clip(v, set(params[0]), set(params[1]));
        if (function == FXQ_MISH) return mish(v);
        return v;
    }
};

template <>
struct Activation<FXQ_SILU> : Silu {
    explicit Activation(const float*) {}
};

template <>
struct Activation<FXQ_GELU> : Gelu {
    explicit Activation(const float*) {}
};

// f(v) * inverse of a u8 result; the identity is scaled already.
template <int function>
struct ScaledActivation {
    const Activation<function> activation;
    const F inverse;

    ScaledActivation(const float* parameters, float inverse) : activation(parameters), inverse(set(inverse)) {}

    F operator()(F v) const { return function == FXQ_IDENTITY ? v : mul(activation(v), inverse); }
};

template <>
struct ScaledActivation<FXQ_SILU> : Silu {
    ScaledActivation(const float*, float inverse) : Silu(inverse) {}
};

template <>
struct ScaledActivation<FXQ_GELU> : Gelu {
    ScaledActivation(const float*, float inverse) : Gelu(inverse) {}
};

// Calls body(Function<f>()), so that a loop inside of it is compiled for each function.
template <int function>
struct Function {
    static constexpr int value = function;
};

template <class Body>
inline void with_function(int function, const Body& body) {
    switch (function) {
        case FXQ_SILU: return body(Function<FXQ_SILU>());
        case FXQ_SIGMOID: return body(Function<FXQ_SIGMOID>());
        case FXQ_TANH: return body(Function<FXQ_TANH>());
        case FXQ_GELU: return body(Function<FXQ_GELU>());
        case FXQ_GELU_TANH: return body(Function<FXQ_GELU_TANH>());
        case FXQ_HARDSWISH: return body(Function<FXQ_HARDSWISH>());
        case FXQ_HARDSIGMOID: return body(Function<FXQ_HARDSIGMOID>());
        case FXQ_LEAKY_RELU: return body(Function<FXQ_LEAKY_RELU>());
        case FXQ_ELU: return body(Function<FXQ_ELU>());
        case FXQ_CLIP: return body(Function<FXQ_CLIP>());
        case FXQ_MISH: return body(Function<FXQ_MISH>());
        default: return body(Function<FXQ_IDENTITY>());
    }
}

// Applies a function in place to `count` values, rounded up to full vectors.
inline void apply_all(int function, const float* params, float* values, int64_t count) {
    with_function(function, [&](auto tag) {
        const Activation<decltype(tag)::value> activation(params);
        for (int64_t i = 0; i < count; i += LANES) store(values + i, activation(load(values + i)));
    });
}

// An activation known only when running, of one vector.
inline F apply(int function, const float* params, F v) {
    F result = v;
    with_function(function, [&](auto tag) { result = Activation<decltype(tag)::value>(params)(v); });
    return result;
}

// The same of a u8 result.
inline F apply_scaled(int function, const float* params, float inverse, F v) {
    F result = v;
    with_function(function, [&](auto tag) { result = ScaledActivation<decltype(tag)::value>(params, inverse)(v); });
    return result;
}

}  // namespace FXQ_NS
}  // namespace fxq
#endif
