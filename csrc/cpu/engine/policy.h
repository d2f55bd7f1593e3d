// The numbers of the engine, outside its certificates (CertificatePolicy has theirs), that decide how work is cut up
// and which of two equal ways is taken: they change speed, never a bit of a result. What results depend on is
// elsewhere: kUpdateChunks, whose ranges fix the order of sums, and the bounds of rounding (state.h); sizes that the
// inner loops are written for (kernels.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ssd::cpu {

struct EnginePolicy {
  // ---- Sharing work out.
  // Rows that a thread claims at a time: a claim costs little beside 8 rows, and a batch of 128 still has 16.
  static constexpr int kRowChunk = 8;
  // Samples that inference, and at least as many that a batch refresh, has side by side: two whole groups of a scan.
  static constexpr int64_t kInferBatch = 256, kRefreshRows = 256;
  // Rows whose certificates are looked at together, some steps ahead: enough that a refresh fills a scan.
  static constexpr int64_t kLookAhead = 1024;
  // Between two looks at the caller's signals: half of what the interface promises.
  static constexpr double kPollSeconds = 0.1;
  // Logits whose fp64 copies lie on the stack (4 KB): beyond it, one allocation a row.
  static constexpr int kInlineClasses = 256;

  // ---- A scan (scan.cpp).
  // Neurons scored before their survivors are picked out: 48 KB of W at 256 inputs, read by all rows of the group.
  static constexpr int kScanBlock = 48;
  // Rows that share one pass over the weights: 32 KB of inputs at 256.
  static constexpr int kScanRows = 32;
  // The same where W is rounded to bf16 on the way: the more rows, the smaller each one's share of the rounding.
  static constexpr int kPreselectRows = 128;
  // Below these sizes bf16 does not pay: rounding is shared by few rows, or the bound keeps most neurons.
  static constexpr int kPreselectLeastRows = 16;
  static constexpr int64_t kPreselectLeastInputs = 32, kPreselectLeastNeurons = 256;
  // Neurons scored in fp32 before bf16 preselection has limits to work with: two blocks give most rows K + 1 scores.
  static constexpr int kScanWarm = 2 * kScanBlock;
  // From 1 candidate in 8 scores on a block is scored in fp32: candidates are scored one by one, without sharing.
  static constexpr int64_t kCandidateShare = 8;
  // Neurons that make a range of their own worth while, since each range finds its thresholds anew; and the most
  // ranges, for one group of rows; for two or three groups half of them, and groups alone from there on.
  static constexpr int64_t kPartNeurons = 512;
  static constexpr int kMostParts = 4;
  // Neurons that won lately bound the threshold of a sample never seen: so many, or so many times K + 1, are scored for
  // it. One row in 8 says which they are: rows of a kind share winners.
  static constexpr size_t kPopular = 64, kPopularWinners = 4;
  static constexpr int kPopularEvery = 8;

  // ---- The forms of a step.
  // Bound of the (R, B) scores that a step without lists keeps.
  static constexpr int64_t kTileBytes = int64_t{1} << 30;
  // A neuron's gradient is a masked product where 1 row in 3 has it active; a list of rows computes fewer products, but
  // each at the speed of reading its row.
  static constexpr int kTileSparse = 3;
  // Neurons that share the reading of the batch: 32 KB of W at 256 inputs.
  static constexpr int kScoreNeurons = 32;
  // Neurons whose dh is made at once: 32 KB at a batch of 128.
  static constexpr int kGradientNeurons = 64;
  // Where 1 row in 4 of a range moves in a step, most move on, and old places cost more than they prove.
  static constexpr int64_t kManyMoved = 4;
  // Bound of the rows kept as they were at the era's start: beyond it paths count in place of distances.
  static constexpr int64_t kEraBytes = int64_t{1} << 28;
  // A row's old place is read at every such move of it, and at each while its distance may be this many gaps: what the
  // path adds in between stays a third of what makes a neuron one of the far ones.
  static constexpr int kEraReadEvery = 4;
  static constexpr float kEraReadFrom = 0.01f;
  // Touched neurons ahead for which an update asks: for the row itself, and for its line in each table before that.
  static constexpr int kRowsAhead = 2, kPlacesAhead = 6;
};

}  // namespace ssd::cpu
