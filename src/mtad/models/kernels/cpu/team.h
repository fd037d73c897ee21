// Threads that walk through the stages of one call together.
#pragma once

#include <cstdint>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "int8_matmul.h"

namespace mtad {

struct Team {
  int64_t index;
  int64_t size;

  // Calls each(i) for this thread's share of `count` things.
  template <typename Each>
  void each(int64_t count, Each each) const {
    const int64_t last = count * (index + 1) / size;
    for (int64_t i = count * index / size; i < last; ++i) each(i);
  }

  // Until all threads have come here.
  void wait() const {
#if defined(_OPENMP)
#pragma omp barrier
#endif
  }
};

// Runs work(team) on so many threads.
template <typename Work>
void in_team(int64_t num_threads, Work work) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(num_threads))
  work(Team{omp_get_thread_num(), omp_get_num_threads()});
#else
  work(Team{0, 1});
#endif
}

// Room for the bytes of some tokens.
struct TokenBytes {
  std::vector<int8_t> bytes;
  std::vector<float> scales;
  std::vector<int32_t> excess;
  Quantised view;

  TokenBytes(int64_t num_tokens, int64_t num_inputs)
      : bytes(num_tokens * num_groups(num_inputs) * GROUP),
        scales(num_tokens * num_groups(num_inputs)),
        excess(num_tokens * num_groups(num_inputs)),
        view{bytes.data(), scales.data(), excess.data(), num_groups(num_inputs)} {}
};

}  // namespace mtad
