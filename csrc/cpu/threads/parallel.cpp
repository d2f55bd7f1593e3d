#include "ssd/parallel.h"

#ifdef SSD_OPENMP
#include <omp.h>
#else
#include <mutex>

#include "ssd/team.h"
#endif

namespace ssd::cpu {

#ifdef SSD_OPENMP
void parallel_run(int threads, void (*body)(void*, int), void* context) {
#pragma omp parallel num_threads(threads)
  {
    // OpenMP may grant fewer threads than asked for: every part is run all the same.
    const int granted = omp_get_num_threads();
    for (int part = omp_get_thread_num(); part < threads; part += granted) body(context, part);
  }
}
#else
void parallel_run(int threads, void (*body)(void*, int), void* context) {
  static std::mutex mutex;  // one operation at a time owns the team
  static Team* team = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (!team || team->threads() != threads) {
    delete team;
    team = new Team(threads);
  }
  team->for_each(threads, [&](int part, int) { body(context, part); });
}
#endif

}  // namespace ssd::cpu
