// The diagonal Fisher information of an MLP with one ReLU layer: its forward pass, then the sums over the samples of
// the squared gradients of every weight.
//
// Work: B R (2 D + 3 C) multiply-adds, 4 C in place of 3 C for the expectation, in tiles of kTileRows neurons by 32
// samples (forward) or 32 inputs (squares). Traffic: x, W and V once, the hidden activations written and read once, the
// sums read and written once; the (B, R) gradients exist 128 samples of one tile of neurons at a time, in the
// first-level cache. Determinism: a sample's forward pass and a neuron's sums have one owner, and the order of a sum is
// that of its terms.
#include <cstdlib>

#include "ops/relu_fisher/relu_fisher_levels.h"
#include "simd/keep_active.h"
#include "simd/product_tile.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

static_assert(kPanelLanes == kFisherLanes);

// Columns of the panels that `columns` need.
SSD_INLINE int64_t padded(int64_t columns) { return (columns + kPanelLanes - 1) / kPanelLanes * kPanelLanes; }

SSD_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SSD_INLINE int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Numbers that begin on a cache line, zeros unless told otherwise.
template <class T>
struct Buffer {
  void* const memory;
  T* const data;
  explicit Buffer(int64_t count, bool zeros = true)
      : memory(std::malloc(static_cast<size_t>(count) * sizeof(T) + 64)),
        data(reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + 63) & ~uintptr_t{63})) {
    if (memory && zeros) std::memset(data, 0, static_cast<size_t>(count) * sizeof(T));
  }
  ~Buffer() { std::free(memory); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

template <class T>
class Mlp {
 public:
  using V = Vec<T>;
  Mlp(const ReluMlpParams& params, int64_t begin, int64_t end)
      : p_(params),
        begin_(begin),
        count_(end - begin),
        class_tiles_(parts(params.classes, kTileRows)),
        x_(count_ * params.inputs * kPanelLanes, false),
        weight_(parts(params.inputs, kTileDepth) * kTileSize),
        output_(class_tiles_ * kTileSize),
        y_(count_ * class_tiles_ * kTileRows * kPanelLanes) {}

  bool run() {
    if (!x_.memory || !weight_.memory || !output_.memory || !y_.memory) return false;
    pack_x();
    for (int64_t j = 0; j < p_.neurons; j += kTileRows) {
      const int64_t rows = smaller(kTileRows, p_.neurons - j);
      pack_weights(j, rows);
      for (int64_t panel = 0; panel < count_; ++panel) multiply(j, rows, panel);
    }
    write_logits();
    return true;
  }

 private:
  int64_t sample(int64_t panel) const { return (begin_ + panel) * kPanelLanes; }
  int64_t lanes(int64_t panel) const { return smaller(kPanelLanes, p_.batch - sample(panel)); }

  void pack_x() {
    for (int64_t panel = 0; panel < count_; ++panel) {
      T* const to = x_.data + panel * p_.inputs * kPanelLanes;
      for (int64_t l = 0; l < lanes(panel); ++l) {
        const T* const from = static_cast<const T*>(p_.x) + (sample(panel) + l) * p_.x_stride;
        for (int64_t i = 0; i < p_.inputs; ++i) to[i * kPanelLanes + l] = from[i];
      }
      for (int64_t i = 0; i < p_.inputs; ++i)
        for (int64_t l = lanes(panel); l < kPanelLanes; ++l) to[i * kPanelLanes + l] = 0;
    }
  }

  // Rows of W, and columns of V as rows of one tile per kTileRows classes; the rows that are missing stay as they are,
  // because nobody reads what comes of them.
  void pack_weights(int64_t j, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* const from = static_cast<const T*>(p_.weight) + (j + r) * p_.weight_stride;
      for (int64_t i = 0; i < p_.inputs; i += kTileDepth)
        std::memcpy(weight_.data + i / kTileDepth * kTileSize + r * kTileStride, from + i,
                    static_cast<size_t>(smaller(kTileDepth, p_.inputs - i)) * sizeof(T));
    }
    for (int64_t c = 0; c < p_.classes; ++c) {
      const T* const from = static_cast<const T*>(p_.output_weight) + c * p_.output_stride + j;
      T* const to = output_.data + c / kTileRows * kTileSize + c % kTileRows * kTileStride;
      for (int64_t r = 0; r < rows; ++r) to[r] = from[r];
    }
  }

  // h of a tile of neurons and a panel of samples, and its share of the logits.
  void multiply(int64_t j, int64_t rows, int64_t panel) {
    alignas(64) T tile[kTileRows * kPanelLanes];
    const int64_t width = lanes(panel);
    for (int64_t i = 0; i < p_.inputs; i += kTileDepth)
      multiply_tile(weight_.data + i / kTileDepth * kTileSize, x_.data + (panel * p_.inputs + i) * kPanelLanes,
                    smaller(kTileDepth, p_.inputs - i), width, i > 0, tile, kPanelLanes);
    T* const hidden = static_cast<T*>(p_.hidden) + j * p_.batch + sample(panel);
    for (int64_t r = 0; r < rows; ++r) {
      const V bias = V::set1(static_cast<const T*>(p_.bias)[j + r]);
      for (int64_t l = 0; l < width; l += V::kWidth) {
        const V h = vmax(V::zero(), V::load(tile + r * kPanelLanes + l) + bias);  // in this order NaN stays
        h.store(tile + r * kPanelLanes + l);
        if (width - l >= V::kWidth)
          h.store(hidden + r * p_.batch + l);
        else
          h.store_partial(hidden + r * p_.batch + l, static_cast<int>(width - l));
      }
    }
    for (int64_t t = 0; t < class_tiles_; ++t)
      multiply_tile(output_.data + t * kTileSize, tile, rows, width, true,
                    y_.data + (panel * class_tiles_ + t) * kTileRows * kPanelLanes, kPanelLanes);
  }

  void write_logits() {
    const T* const bias = static_cast<const T*>(p_.output_bias);
    for (int64_t panel = 0; panel < count_; ++panel) {
      const T* const from = y_.data + panel * class_tiles_ * kTileRows * kPanelLanes;
      T* const to = static_cast<T*>(p_.logits) + sample(panel) * p_.classes;
      for (int64_t l = 0; l < lanes(panel); ++l)
        for (int64_t c = 0; c < p_.classes; ++c) to[l * p_.classes + c] = from[c * kPanelLanes + l] + bias[c];
    }
  }

  const ReluMlpParams& p_;
  const int64_t begin_, count_, class_tiles_;
  Buffer<T> x_;       // (panels, D, 32)
  Buffer<T> weight_;  // tiles of kTileDepth inputs
  Buffer<T> output_;  // tiles of kTileRows classes
  Buffer<T> y_;       // (panels, classes, 32)
};

template <class T>
void pack(const ReluFisherParams& p, const FisherPanels& panels, int64_t begin, int64_t end) {
  const T beta = static_cast<T>(p.beta);
  T *const inputs = static_cast<T*>(panels.inputs), *const squares = static_cast<T*>(panels.squares);
  for (int64_t b = begin; b < end; ++b) {
    const T* const x = static_cast<const T*>(p.x) + b * p.x_stride;
    for (int64_t i = 0; i < p.inputs; i += kPanelLanes) {
      T* const to = inputs + (i / kPanelLanes * p.batch + b) * kPanelLanes;
      const int64_t lanes = smaller(kPanelLanes, p.inputs - i);
      for (int64_t l = 0; l < lanes; ++l) to[l] = x[i + l] * x[i + l];
      for (int64_t l = lanes; l < kPanelLanes; ++l) to[l] = 0;
    }
    const T* const share = static_cast<const T*>(p.probabilities) + b * p.classes;
    const int64_t label = p.labels ? p.labels[b] : -1;
    T* const gradient = static_cast<T*>(panels.gradients) + b / kPanelLanes * p.classes * kPanelLanes + b % kPanelLanes;
    for (int64_t c = 0; c < padded(p.classes); ++c) {
      T d = 0, square = 0;
      if (c < p.classes) {
        d = p.labels ? beta * (share[c] - static_cast<T>(c == label)) : share[c];
        square = p.labels ? d * d : beta * beta * share[c] * (1 - share[c]);
        gradient[c * kPanelLanes] = d;
      }
      squares[(c / kPanelLanes * p.batch + b) * kPanelLanes + c % kPanelLanes] = square;
    }
  }
  if (end < p.batch || end % kPanelLanes == 0) return;
  T* const last = static_cast<T*>(panels.gradients) + end / kPanelLanes * p.classes * kPanelLanes;
  for (int64_t c = 0; c < p.classes; ++c)
    for (int64_t l = end % kPanelLanes; l < kPanelLanes; ++l) last[c * kPanelLanes + l] = 0;
}

template <class T>
class Squares {
 public:
  using V = Vec<T>;
  Squares(const ReluFisherParams& params, const FisherPanels& panels)
      : p_(params),
        inputs_(static_cast<const T*>(panels.inputs)),
        gradients_(static_cast<const T*>(panels.gradients)),
        squares_(static_cast<const T*>(panels.squares)),
        depth_tiles_(parts(params.classes, kTileDepth)),
        class_lanes_(padded(params.classes)),
        output_((params.labels ? 1 : 2) * depth_tiles_ * kTileSize),
        tiles_((params.labels ? 2 : 3) * kTileSize),
        sums_(kTileRows * class_lanes_) {}

  bool run(int64_t begin, int64_t end) {
    if (!output_.memory || !tiles_.memory || !sums_.memory) return false;
    if (begin == 0 && end > 0) output_bias();
    for (int64_t j = begin; j < end; j += kTileRows) neurons(j, smaller(kTileRows, end - j));
    return true;
  }

 private:
  void output_bias() const {
    for (int64_t c = 0; c < p_.classes; c += kPanelLanes) {
      T sums[kPanelLanes] = {};
      const T* const panel = squares_ + c * p_.batch;
      for (int64_t b = 0; b < p_.batch; ++b)
        for (int64_t l = 0; l < kPanelLanes; ++l) sums[l] += panel[b * kPanelLanes + l];
      for (int64_t l = 0; l < kPanelLanes && c + l < p_.classes; ++l) static_cast<T*>(p_.output_sums)[c + l] += sums[l];
    }
  }

  void neurons(int64_t j, int64_t rows) {
    T* const g = tiles_.data;
    T* const h = g + kTileSize;
    V bias[kTileRows];
    for (V& sum : bias) sum = V::zero();
    pack_output(j, rows);
    for (int64_t b = 0; b < p_.batch; b += kTileDepth) {
      const int64_t count = smaller(kTileDepth, p_.batch - b);
      for (int64_t l = 0; l < count; l += kPanelLanes) gradients(b + l, g + l, h + kTileSize + l);
      square(j, rows, b, count, bias);
      for (int64_t i = 0; i < p_.inputs; i += kPanelLanes)
        add_product(g, inputs_ + (i / kPanelLanes * p_.batch + b) * kPanelLanes, count, rows,
                    smaller(kPanelLanes, p_.inputs - i), static_cast<T*>(p_.weight) + j * p_.inputs + i, p_.inputs);
      for (int64_t c = 0; c < p_.classes; c += kPanelLanes)
        multiply_tile(h, squares_ + (c / kPanelLanes * p_.batch + b) * kPanelLanes, count,
                      smaller(kPanelLanes, p_.classes - c), b > 0, sums_.data + c, class_lanes_);
    }
    if (p_.batch == 0) return;
    for (int64_t r = 0; r < rows; ++r) static_cast<T*>(p_.bias)[j + r] += reduce_add(bias[r]);
    for (int64_t c = 0; c < p_.classes; ++c)
      for (int64_t r = 0; r < rows; ++r)
        static_cast<T*>(p_.output)[c * p_.neurons + j + r] += sums_.data[r * class_lanes_ + c];
  }

  // Columns of V as rows of tiles of kTileDepth classes, and behind them their squares.
  void pack_output(int64_t j, int64_t rows) {
    for (int64_t c = 0; c < p_.classes; ++c) {
      const T* const from = static_cast<const T*>(p_.output_weight) + c * p_.output_stride + j;
      T* const to = output_.data + c / kTileDepth * kTileSize + c % kTileDepth;
      for (int64_t r = 0; r < rows; ++r) to[r * kTileStride] = from[r];
      if (p_.labels) continue;
      for (int64_t r = 0; r < rows; ++r) to[depth_tiles_ * kTileSize + r * kTileStride] = from[r] * from[r];
    }
  }

  // Of the panel of samples that begins at b: to = dL/dh, or p V with p V^2 in second.
  void gradients(int64_t b, T* to, T* second) const {
    for (int64_t t = 0; t < depth_tiles_; ++t) {
      const int64_t c = t * kTileDepth, depth = smaller(kTileDepth, p_.classes - c);
      const T* const panel = gradients_ + (b / kPanelLanes * p_.classes + c) * kPanelLanes;
      multiply_tile(output_.data + t * kTileSize, panel, depth, kPanelLanes, t > 0, to, kTileStride);
      if (!p_.labels)
        multiply_tile(output_.data + (depth_tiles_ + t) * kTileSize, panel, depth, kPanelLanes, t > 0, second,
                      kTileStride);
    }
  }

  // The tile of dL/dh becomes its (mean) square where h > 0, and the next one h^2.
  void square(int64_t j, int64_t rows, int64_t b, int64_t count, V* bias) {
    const V scale = V::set1(static_cast<T>(p_.beta * p_.beta));
    for (int64_t r = 0; r < rows; ++r) {
      const T* const hidden = static_cast<const T*>(p_.hidden) + (j + r) * p_.hidden_stride + b;
      T* const at = tiles_.data + r * kTileStride;
      for (int64_t l = 0; l < count; l += V::kWidth) {
        const int64_t left = count - l;
        const V h = left >= V::kWidth ? V::load(hidden + l) : V::load_partial(hidden + l, static_cast<int>(left));
        V g = V::load(at + l);
        g = g * g;
        if (!p_.labels) g = vmax(V::zero(), V::load(at + 2 * kTileSize + l) - g) * scale;  // in this order NaN stays
        g = keep_active(h, g);
        bias[r] = bias[r] + g;
        g.store(at + l);
        (h * h).store(at + kTileSize + l);
      }
    }
  }

  const ReluFisherParams& p_;
  const T *const inputs_, *const gradients_, *const squares_;
  const int64_t depth_tiles_, class_lanes_;
  Buffer<T> output_;  // tiles of kTileDepth classes
  Buffer<T> tiles_;   // dL/dh, h^2 and p V^2 of kTileDepth samples
  Buffer<T> sums_;    // (kTileRows, classes)
};

}  // namespace

bool relu_mlp_panels(const ReluMlpParams& params, int64_t begin, int64_t end) {
  if (params.dtype == Dtype::kFloat64) return Mlp<double>(params, begin, end).run();
  return Mlp<float>(params, begin, end).run();
}

void relu_fisher_pack(const ReluFisherParams& params, const FisherPanels& panels, int64_t begin, int64_t end) {
  if (params.dtype == Dtype::kFloat64) return pack<double>(params, panels, begin, end);
  pack<float>(params, panels, begin, end);
}

bool relu_fisher_neurons(const ReluFisherParams& params, const FisherPanels& panels, int64_t begin, int64_t end) {
  if (params.dtype == Dtype::kFloat64) return Squares<double>(params, panels).run(begin, end);
  return Squares<float>(params, panels).run(begin, end);
}

}  // namespace ssd::cpu::SSD_LEVEL
