// What Python calls, compiled as one unit.
#include <vector>

#include "decoder.h"

// A linear layer: inputs [tokens, num_inputs], outputs [tokens, num_outputs].
extern "C" void mtad_int8_linear(
    const mtad::Linear* linear, const float* inputs, float* outputs, int64_t num_tokens, int64_t num_threads) {
  using namespace mtad;
  const int64_t size = linear->num_inputs, width = linear->num_outputs;
  TokenBytes tokens(num_tokens, size);
  in_team(num_threads, [&](Team team) {
    team.each(num_tokens, [&](int64_t token) { quantise(inputs + token * size, size, tokens.view, token); });
    team.wait();
    team.each(num_tiles(*linear), [&](int64_t tile) {
      in_parts(*linear, tile, num_tokens, [&](int64_t first, int count, Ahead ahead) {
        float product[MOST_TOKENS * TILE];
        tile_product(*linear, tile, tokens.view, first, count, ahead, product);
        const int64_t start = tile * TILE, kept = std::min<int64_t>(TILE, width - start);
        for (int m = 0; m < count; ++m) std::copy_n(product + m * TILE, kept, outputs + (first + m) * width + start);
      });
    });
  });
}

extern "C" void mtad_decode(const mtad::Decoder* decoder, const mtad::Call* call) {
  if (decoder->cache_is_bfloat16)
    mtad::decode<uint16_t>(*decoder, *call);
  else
    mtad::decode<float>(*decoder, *call);
}

extern "C" void mtad_move(const mtad::Decoder* decoder, const mtad::Move* move) { mtad::move_slots(*decoder, *move); }
