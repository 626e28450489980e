// The arithmetic of the noise of a step: what numpy does pass by pass, in one. dpvae/privacy/native.py compiles it.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Interpolation at Chebyshev points: log(1 + t) / t for 1 + t between the roots of 1/2 and 2, to 2e-11; and sin(x) / x of
// x^2 up to a quarter turn, to 2e-11 before it is rounded. Highest power first.
constexpr double LOG[] = {0.05235939384213644, -0.09804458451007568, 0.10047199190334152, -0.09945986830064908,
                          0.1100603790750665, -0.124954361559447, 0.14290811811733256, -0.16667024539772607,
                          0.1999988813698818, -0.24999992728950937, 0.33333334249244445, -0.500000000359497,
                          0.9999999999874644};
constexpr float SINE[] = {-2.3889217e-8f, 2.752527e-6f, -1.9840861e-4f, 8.333331e-3f, -1.6666667e-1f, 1.0f};

template <typename Real, int Size>
inline Real polynomial(const Real (&coefficients)[Size], Real x) {
    Real sum = coefficients[0];
    for (int i = 1; i < Size; i++) sum = sum * x + coefficients[i];
    return sum;
}

double number(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint64_t bits_of(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// A whole number below 2^52, as the mantissa of a double that begins at 2^52: wide registers cannot convert it otherwise.
double whole(uint64_t number_) { return number(number_ | 0x4330000000000000) - 0x1p52; }

// log(u) of u in (0, 1]: of u = 2^k m, m about one. log(1 + t) / t by Chebyshev points, to 2e-11.
double logarithm(double u) {
    const uint64_t bits = bits_of(u), root_half = 0x3FE6A09E00000000, k = (bits - root_half + (64ull << 52)) >> 52;
    const double t = number(bits - ((k - 64) << 52)) - 1;
    return (whole(k) - 64) * M_LN2 + t * polynomial(LOG, t);
}

// The cosine of so many 2^-32ths of a turn: the sine of the distance from where it vanishes. sin(x) / x to 1e-8.
float cosine(uint32_t turn) {
    const int32_t distance = (int32_t)((1u << 30) - (turn >> 31 ? -turn : turn));
    const float x = (float)distance * (float)(2 * M_PI * 0x1p-32), s = x * x;
    return x * polynomial(SINE, s);
}

}  // namespace

extern "C" void box_muller(const uint64_t* words, const uint32_t* turns, double* out, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i++) {
        const double high = whole(words[i] >> 32 & 0x7FFFFFFF), low = whole(words[i] & 0xFFFFFFFF);
        const double radius = std::sqrt(-2 * logarithm((high * 0x1p32 + (low + 0.5)) * 0x1p-63));
        out[i] = radius * cosine(turns[i]);
        out[pairs + i] = radius * cosine(turns[i] - (1u << 30));
    }
}

// Sums and noise, each in whole steps of the grid, added; a step is a power of two, so dividing by it is exact.
extern "C" void noisy(const float* sums, const double* normals, float* out, int64_t size, double deviation, double grid) {
    const double scale = deviation / grid;
    const float steps = (float)(1 / grid);
    for (int64_t i = 0; i < size; i++)
        out[i] = (float)(std::nearbyint(normals[i] * scale) + std::nearbyint(sums[i] * steps)) * (float)grid;
}
