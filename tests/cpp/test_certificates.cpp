// Certificates at their bounds: rows move straight along an input, where Cauchy and Schwarz hold with equality, and the
// threshold passes the bound ulp by ulp. A certificate must be right wherever it is given, and be given just beyond.
#include <cstdio>

#include "moving_layer.h"

using namespace ssd::cpu;
using ssd::test::Layer;
using ssd::test::Random;
using ssd::test::Rounding;

namespace {

constexpr int kWinners = 3;        // K
constexpr int64_t kNeurons = 256;  // lists of 64
constexpr int64_t kFollower = 80;  // the neuron whose way the tests follow; the first ones are the likely winners
constexpr int64_t kNear = 48;      // neurons that come before it in the list: three whole blocks
constexpr double kThreshold = 0.5;

// kOverflow: within the gap, but behind a list that is full. kBehind: in the last block, with a margin that is a little
// larger than those of the block before, for lists are sorted coarsely.
// kTight, kTightListed: as kOverflow and kListed, so close that the follower gets to the threshold without being far.
enum class Place { kOutside, kListed, kMover, kOverflow, kBehind, kTight, kTightListed };

bool tight(Place place) { return place == Place::kTight || place == Place::kTightListed; }

struct Course {
  Place place;           // of the follower in the record
  float g;               // its coefficient
  double change;         // of the threshold after the record
  bool turns = false;    // half of its way leads to the record, away from the threshold
  bool early = false;    // it turns before the snapshot, in the same era, having moved too little to be a mover
  int eras = 1;          // eras that its way takes
  bool earlier = false;  // it moved in an era before the snapshot
  float g_min = 1;       // the smallest coefficient of all
};

// How far the follower is below its level in the record.
double margin_of(const Course& course, const Layer& layer) {
  const bool outside = course.place == Place::kOutside || course.place == Place::kMover;
  return (outside ? 1 + 1e-6 : tight(course.place) ? 0.025 : 0.6) * layer.certificates.gap();
}

// K + 1 winners at the threshold and above, kNear neurons just below it, all others far below.
void place_rows(Layer& layer, const Course& course, Random& random) {
  double square = 0;
  for (float& value : layer.x) {
    value = static_cast<float>(std::fabs(random.uniform()) + 0.01);
    square += static_cast<double>(value) * value;
  }
  for (float& value : layer.x) value = static_cast<float>(value / std::sqrt(square));
  const int64_t near = course.place == Place::kOverflow || course.place == Place::kTight ? 64 : kNear;
  for (int64_t j = 0; j < kNeurons; ++j) {
    double score = j <= kWinners          ? kThreshold + 1e-3 * static_cast<double>(j)
                   : j <= kWinners + near ? (tight(course.place) ? .997 : .97) * kThreshold
                                          : .02;
    if (course.place == Place::kBehind && j > kWinners + near - 16 && j <= kWinners + near)
      score = kThreshold - margin_of(course, layer) - 2e-4;
    layer.place(j, 0, score);
  }
  layer.gaba[kFollower] = course.g;
  layer.gaba[kNeurons - 1] = std::min(layer.gaba[kNeurons - 1], course.g_min);
}

// The follower goes straight along x to the level that makes it active, and the threshold passes that level ulp by ulp.
// rounding: what scores err by, downwards at the record and upwards later. Returns the certificates given; `beyond`
// raises the threshold clear of the level.
int64_t run(SimdLevel level, int64_t inputs, const Course& course, Random& random, double rounding, double beyond) {
  Layer l(level, kNeurons, inputs, 1, kWinners);
  place_rows(l, course, random);
  const double margin = margin_of(course, l);
  const double recorded = course.g * kThreshold - margin, way = margin + course.g * course.change;
  const double home = recorded + (course.turns   ? way / 2
                                  : course.early ? std::min(way / 2, 0.018 * l.certificates.gap())
                                                 : 0);
  l.place(kFollower, 0, home);
  l.begin();
  if (course.earlier) {  // a snapshot of its own, too: the later one gets another slot, for another mover
    l.snapshot();
    l.scan(0);
    l.place(kFollower, 0, home + .015 * l.certificates.gap());
    l.place(kNeurons - 2, 0, .2);
    l.moved({kFollower, kNeurons - 2});
    l.place(kFollower, 0, home);
    l.place(kNeurons - 2, 0, .02);
    l.moved({kFollower, kNeurons - 2});
    l.next_era();
  }
  // Who moved far in this era is a mover of the snapshot's records: the winners move freely.
  std::vector<int64_t> movers;
  for (int64_t j = 0; j <= kWinners; ++j) movers.push_back(j);
  if (course.place == Place::kMover) movers.push_back(kFollower);
  const std::vector<float> rows = l.weight;
  for (const int64_t j : movers) l.place(j, 0, .3);
  l.moved(movers);
  l.weight = rows;
  l.moved(movers);
  if (!course.early) l.snapshot();
  l.place(kFollower, 0, recorded);
  l.moved({kFollower});
  if (course.early) l.snapshot();
  Rounding::error = [&](int64_t j) { return j == kFollower ? -rounding : 0.0; };
  l.scan(0);
  Rounding::error = [&](int64_t j) { return j == kFollower ? rounding : 0.0; };
  for (int e = 1; e <= course.eras; ++e) {
    if (e > 1) l.next_era();
    l.place(kFollower, 0, recorded + way * e / course.eras);
    l.moved({kFollower});
  }
  const double meets = static_cast<double>(l.scores(0)[kFollower]) / course.g;
  movers.resize(kWinners + 1);
  for (int step = -12; step <= 12; ++step) {
    for (const int64_t j : movers) l.place(j, 0, meets * (1 + step * 0x1p-24) + beyond + 1e-3 * static_cast<double>(j));
    l.moved(movers);
    l.certify(0);
  }
  return l.certified;
}

// What the slack allows a score to err by (README, "Rounding").
double allowed_rounding(SimdLevel level, int64_t inputs) {
  return (static_cast<double>(inputs) / sdmlp_kernels(level).width + 8) * 0x1p-24;
}

// Every way at its bound: with the roundings of the processor, and with the largest that the proof allows.
void check_bounds(SimdLevel level) {
  Random random(5);
  for (const Place place : {Place::kOutside, Place::kListed, Place::kMover, Place::kOverflow, Place::kBehind,
                            Place::kTight, Place::kTightListed}) {
    for (const int kind : {0, 1, 2, 3, 4}) {
      for (const double change : {0.0, 0.07, -0.05}) {
        for (const float g : {1.f, 0.6f}) {
          // Where the threshold falls, the bound takes every coefficient for 1.
          if (change < 0 && g < 1) continue;
          Course course{place, g, tight(place) ? change * .04 : change};
          course.turns = kind == 1;
          course.eras = kind == 2 ? 3 : 1;
          course.earlier = kind == 3;
          course.early = kind == 4;
          course.g_min = g;
          for (const int64_t inputs : {1, 7, 40, 300}) {
            for (int round = 0; round < 6; ++round) run(level, inputs, course, random, 0, 0);
            const double allowed = allowed_rounding(level, inputs);
            run(level, inputs, course, random, allowed, 0);
            const int64_t given = run(level, inputs, course, random, 0, (6 * allowed + 4e-6) / g);
            CHECK(given == 25, "%s, %d inputs, place %d, kind %d, change %g, g %g: %d certificates",
                  simd_level_name(level), static_cast<int>(inputs), static_cast<int>(place), kind, change,
                  static_cast<double>(g), static_cast<int>(given));
          }
        }
      }
    }
  }
}

// Coefficients below 0: a rising threshold must not be taken to push everything down.
void check_negative_coefficients(SimdLevel level) {
  Random random(6);
  for (const float g_min : {-1.f, -0.2f, 0.1f}) {
    for (const double change : {0.02, 0.2, 0.4}) {
      for (const bool turns : {false, true}) {
        Course course{Place::kOutside, 0.3f, change};
        course.g_min = g_min;
        course.turns = turns;
        for (const int64_t inputs : {1, 40}) run(level, inputs, course, random, 0, 0);
      }
    }
  }
}

// The far list: its neurons are followed one by one, so the way of one says nothing of the others.
void check_far(SimdLevel level) {
  Random random(8);
  for (const bool known : {false, true}) {       // far before the record, or only after it
    for (const bool turns : {false, true}) {     // from one side of its place at the snapshot to the other
      for (const bool listed : {false, true}) {  // among the sample's candidates, in a block that is not looked at
        for (const int eras : {1, 2}) {
          for (const int64_t inputs : {1, 40, 300}) {
            const double rounding = inputs == 300 ? allowed_rounding(level, inputs) : 0;
            Layer l(level, kNeurons, inputs, 1, kWinners);
            Course course{listed ? Place::kListed : Place::kOutside, 1, 0};
            place_rows(l, course, random);
            const double margin = margin_of(course, l), level_of = kThreshold - margin, gap = l.certificates.gap();
            const double away = !known ? 0 : turns ? -.5 * gap : .3 * gap;
            l.place(kFollower, 0, level_of - away);
            // Without a list the margin that is left is the follower's own, and the bound of its way is met.
            for (int64_t j = kWinners + 1; !listed && j <= kWinners + kNear; ++j) l.place(j, 0, .02);
            l.begin();
            std::vector<int64_t> movers;
            for (int64_t j = 0; j <= kWinners; ++j) movers.push_back(j);
            const std::vector<float> rows = l.weight;
            for (const int64_t j : movers) l.place(j, 0, .3);
            l.moved(movers);
            l.weight = rows;
            l.moved(movers);
            l.snapshot();
            for (int e = 1; known && e <= 2; ++e) {  // its entry is not its farthest place
              l.place(kFollower, 0, level_of - away * (2 - e) / 2);
              l.moved({kFollower});
            }
            // Scores err downwards at the record and where the far neuron gets a bound of its own, upwards in the end.
            Rounding::error = [&](int64_t j) { return j == kFollower ? -rounding : 0.0; };
            l.scan(0);
            for (int e = 1; e <= eras; ++e) {
              if (e > 1) l.next_era();
              l.place(kFollower, 0, level_of + margin * e / (eras + 1));
              l.moved({kFollower});
              l.certify(0);
            }
            Rounding::error = [&](int64_t j) { return j == kFollower ? rounding : 0.0; };
            l.place(kFollower, 0, level_of + margin);
            l.moved({kFollower});
            const double meets = static_cast<double>(l.scores(0)[kFollower]);
            for (int step = -12; step <= 12; ++step) {
              for (const int64_t j : movers)
                l.place(j, 0, meets * (1 + step * 0x1p-24) + 1e-3 * static_cast<double>(j));
              l.moved(movers);
              // A far neuron is scored where its drift matters, so there is always a certificate.
              CHECK(l.certify(0), "%s: known %d, turns %d, listed %d, eras %d", simd_level_name(level), known, turns,
                    listed, eras);
            }
          }
        }
      }
    }
  }
}

// A far list that is full: who drifts far then counts with the rest.
void check_full_far_list(SimdLevel level) {
  constexpr int64_t kMany = Certificates::kFarMost * Certificates::kFarShare;
  Random random(9);
  Layer l(level, kMany, 1, 1, kWinners);
  l.x[0] = 1;
  for (int64_t j = 0; j < kMany; ++j) l.place(j, 0, j <= kWinners ? kThreshold : .02);
  l.place(kFollower, 0, kThreshold - l.certificates.gap() * (1 + 1e-6));
  l.begin();
  l.snapshot();
  l.scan(0);
  std::vector<int64_t> others;
  for (int64_t j = 100; j < 100 + Certificates::kFarMost; ++j) {
    l.place(j, 0, .06);
    others.push_back(j);
  }
  l.moved(others);
  CHECK(l.certify(0));
  l.place(kFollower, 0, kThreshold * (1 + 1e-6));
  l.moved({kFollower});
  CHECK(!l.certify(0));
}

// Where many neurons drift, or all are said to, the drift is the layer's: records are renewed in time, and not kept
// alive by scoring hundreds of far neurons.
void check_collective_drift(SimdLevel level) {
  for (const bool all_move : {false, true}) {
    for (const int64_t drifting : {int64_t{8}, kNeurons - 100}) {
      Layer l(level, kNeurons, 1, 1, kWinners);
      l.x[0] = 1;
      const double gap = l.certificates.gap();
      for (int64_t j = 0; j < kNeurons; ++j) l.place(j, 0, j <= kWinners ? kThreshold : .02);
      l.certificates.change_gaba(l.gaba, all_move);
      l.begin();
      l.snapshot();
      l.scan(0);
      std::vector<int64_t> others;
      for (int64_t j = 100; j < 100 + drifting; ++j) {
        l.place(j, 0, .02 + 1.01 * gap);
        others.push_back(j);
      }
      l.moved(others);
      l.begin_epoch();
      const int64_t order[] = {0};
      const bool expires = !l.certificates.expiring(order, 0, 1).empty();
      CHECK(expires == (all_move || drifting > 8), "%s: all move %d, %d drift, expires %d", simd_level_name(level),
            all_move, static_cast<int>(drifting), expires);
    }
  }
}

// A neuron that becomes a mover after the snapshot: its records know nothing of it.
void check_late_mover(SimdLevel level) {
  Layer l(level, kNeurons, 1, 1, kWinners);
  l.x[0] = 1;
  const double gap = l.certificates.gap(), start = kThreshold - gap * (1 + 1e-6);
  for (int64_t j = 0; j < kNeurons; ++j) l.place(j, 0, j <= kWinners ? kThreshold : .02);
  l.place(kFollower, 0, start);
  l.begin();
  l.snapshot();
  l.scan(0);
  l.place(kFollower, 0, start + (Certificates::kMoves + Certificates::kFar) / 2 * gap);
  l.moved({kFollower});
  l.begin_epoch();  // it has moved enough for a mover, too little for the far list
  l.place(kFollower, 0, kThreshold * (1 + 1e-6));
  l.moved({kFollower});
  CHECK(l.certify(0));
}

// Many neurons to and fro on one line, records of many ages, movers that come and go, rising coefficients: with one
// input every bound is as tight as the triangle inequality.
void check_wandering(SimdLevel level, uint64_t seed, int64_t inputs, float least) {
  constexpr int64_t kSamples = 12, kSteps = 1200;
  Random random(seed);
  Layer l(level, 512, inputs, kSamples, kWinners);
  for (int64_t i = 0; i < kSamples; ++i) {
    double square = 0;
    for (int64_t d = 0; d < inputs; ++d) {
      l.x[i * inputs + d] = static_cast<float>(1 + (inputs > 1 ? random.uniform() : 0));
      square += static_cast<double>(l.x[i * inputs + d]) * l.x[i * inputs + d];
    }
    for (int64_t d = 0; d < inputs; ++d)
      l.x[i * inputs + d] = static_cast<float>(l.x[i * inputs + d] / std::sqrt(square));
  }
  for (int64_t j = 0; j < l.R; ++j) {
    l.place(j, j % kSamples, .2 + .3 * std::fabs(random.uniform()));
    l.gaba[j] = random.below(20) ? 1.f : static_cast<float>(least + (1 - least) * std::fabs(random.uniform()));
  }
  l.begin();
  std::vector<int64_t> order(kSamples);
  for (int64_t i = 0; i < kSamples; ++i) order[i] = i;
  for (int64_t step = 0; step < kSteps; ++step) {
    if (step % 6 == 0) {
      l.begin_epoch();
      for (const int64_t i : l.certificates.expiring(order.data(), 0, kSamples)) {
        l.snapshot();
        l.scan(order[i]);
      }
    }
    std::vector<int64_t> touched;
    const double pace = step % 200 < 100 ? .01 : .001;
    for (int64_t j = 0; j < l.R; ++j) {
      const bool fast = (j + step / 100) % 37 == 0;
      if (!fast && random.below(8)) continue;
      const double towards = random.uniform() * pace * (fast ? 8 : 1);
      const int64_t sample = random.below(kSamples);
      for (int64_t d = 0; d < inputs; ++d) {
        float& w = l.weight[j * inputs + d];
        w = std::min(.9f, std::max(0.f, w + static_cast<float>(towards) * l.x[sample * inputs + d]));
      }
      if (random.below(4) == 0) l.gaba[j] = std::min(1.f, l.gaba[j] + .002f);
      touched.push_back(j);
    }
    l.moved(touched);
    for (int n = 0; n < 2; ++n) {
      const int64_t sample = random.below(kSamples);
      if (l.certify(sample)) continue;
      l.snapshot();
      l.scan(sample);
    }
    l.certificates.step_done(2);
    if (step % 6 == 5) l.certificates.end_epoch(kSamples);
  }
  CHECK(l.certified > kSteps / 4, "%s, seed %d: %d certificates, %d refused", simd_level_name(level),
        static_cast<int>(seed), static_cast<int>(l.certified), static_cast<int>(l.refused));
}

}  // namespace

int main() {
  for (int i = 0; i <= static_cast<int>(best_simd_level()); ++i) {
    const SimdLevel level = static_cast<SimdLevel>(i);
    check_bounds(level);
    check_negative_coefficients(level);
    check_far(level);
    check_full_far_list(level);
    check_collective_drift(level);
    check_late_mover(level);
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      for (const int64_t inputs : {1, 3}) {
        for (const float least : {0.f, .5f, -.3f}) check_wandering(level, seed, inputs, least);
      }
    }
  }
  std::printf("certificates: passed\n");
}
