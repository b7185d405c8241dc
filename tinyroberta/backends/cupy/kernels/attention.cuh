// What the attention kernels read. Queries stand packed: sequence b's are the rows query_start[b] to query_start[b + 1]. Its keys
// are key_length[b] rows from key_start[b], in a packed array or, with a stride for the batch and one for the heads, in a cache
// (B, H, capacity, d). Strides count numbers.
#pragma once

// Something added to the scores or multiplied into the probabilities, broadcast to (B, H, Sq, Sk) by strides of 0. Null: nothing.
struct Spread {
  const float* at;
  i64 batch, head, row, key;
  __device__ __forceinline__ float operator()(int b, int h, int q, int k, float otherwise) const {
    return at ? at[b * batch + h * head + q * row + k * key] : otherwise;
  }
};

template <int N>
struct Count {  // a number for the compiler
  static constexpr int value = N;
};

#define ATTENTION_ARGUMENTS                                                                                                   \
  const int *tiles, const int *query_start, const int *key_start, const int *key_length, int causal, i64 query_row,           \
      i64 key_batch, i64 key_head, i64 key_row, const float *bias, i64 bias_batch, i64 bias_head, i64 bias_row, i64 bias_key, \
      const float *head_mask, i64 mask_batch, i64 mask_head, i64 mask_row, i64 mask_key, int size, float scale
#define SPREADS                                                               \
  const Spread added{bias, bias_batch, bias_head, bias_row, bias_key}, kept { \
    head_mask, mask_batch, mask_head, mask_row, mask_key                      \
  }
