// Bugs that exist in one build of the kernels only (:kernels_planted), where
// planted_bugs_test.cc turns them on one at a time and the emulator must
// notice: elsewhere HasPlantedBug is a constant. To plant another: a name here,
// and `HasPlantedBug(...)` in a kernel.
#ifndef QUIRE_KERNELS_CUDA_PLANTED_BUG_H_
#define QUIRE_KERNELS_CUDA_PLANTED_BUG_H_

#include <cstdint>

#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

// X(name): races first, then indices and numbers.
#define QUIRE_CUDA_PLANTED_BUGS(X)                                      \
  X(AttentionNoBarrierAfterLoad)  /* Others' keys are not there yet. */ \
  X(AttentionNoBarrierBeforeLoad) /* A warp still reads the buffer. */  \
  X(AttentionWaitsForTooFewCopies)                                      \
  X(AttentionMergesTooEarly) /* Maxima of other warps. */               \
  X(AttentionMergesAtOnce)   /* Sums of other warps. */                 \
  X(AttentionSeesTheFuture)                                             \
  X(AttentionWindowTooWide)                                             \
  X(AttentionReadsPastTheEnd)                                           \
  X(AttentionWrongOffsetInBlock)                                        \
  X(AttentionWrongHead)                                                 \
  X(AttentionForgetsRescale)                                            \
  X(AttentionMergesOnePartTooFew)                                       \
  X(AttentionNoSwizzle) /* Right, but with bank conflicts. */           \
  X(AttentionMergesInOneBank)                                           \
  X(AttentionFp8QueriesInOrder)                                         \
  X(AttentionFp8KeysInterleaved)                                        \
  X(WarpgroupNoWaitForCopies)                                           \
  X(WarpgroupNoProxyFence) /* Products may not see what was written. */ \
  X(WarpgroupNoBarrierBeforeQueries)                                    \
  X(WarpgroupNoBarrierAfterQueries) /* Keys come where they are. */     \
  X(WarpgroupNoTurns)                                                   \
  X(WarpgroupTwoStages)                                                 \
  X(WarpgroupGivesBeforeItsCopies)                                      \
  X(WarpgroupGivesTooEarly) /* Before it has its own turn. */           \
  X(WarpgroupGivesOneTurnTooMany)                                       \
  X(WarpgroupLoadsTooEarly) /* The other one's products read there. */  \
  X(WarpgroupLoadsTooLate)  /* For the other one's next turn. */        \
  X(WarpgroupReadsScoresTooEarly)                                       \
  X(WarpgroupKeepsProbabilitiesTooEarly)                                \
  X(WarpgroupNoSwizzle)                                                 \
  X(SkinnyNoBarrierBeforeReduce)                                        \
  X(SkinnyReducesOneWarpTooFew)                                         \
  X(SkinnyLosesTheLastToken)                                            \
  X(SkinnyNormNoBarrier)  /* Others' columns are not there. */          \
  X(SkinnyNormBeforeWait) /* The previous kernel writes x. */           \
  X(SkinnyNormLosesTheLastRows)                                         \
  X(SkinnyNormOneScratch) /* Sums of the rows before are still read. */ \
  X(SkinnyNormNoPadding)  /* Right, but with bank conflicts. */         \
  X(TiledNoBarrier)                                                     \
  X(TiledWaitsForTooFewCopies)                                          \
  X(TiledForgetsAnEmptyGroup)                                           \
  X(TiledLosesTheLastDepth)                                             \
  X(TiledSwapsGateAndUp)                                                \
  X(TiledNoSwizzle)                                                     \
  X(TiledFinishesInOneBank)                                             \
  X(QuantizedScaleOfTheNextGroup)                                       \
  X(QuantizedForgetsZeroPoints)                                         \
  X(QuantizedInt8Unsigned)                                              \
  X(WideningNoBarrierBeforeMultiply)                                    \
  X(WideningNoBarrierBeforeStore)                                       \
  X(QuantizeRowsNoBarrier)                                              \
  X(QuantizeGroupsOfHalfTheSize)                                        \
  X(Fp8LosesTheLastBlock)                                               \
  X(Fp8ScaleOfTheBlockBefore)                                           \
  X(SamplingReduceNoBarrier)                                            \
  X(SamplingReduceScratchReused)                                        \
  X(SamplingBinsReadTooEarly)                                           \
  X(SamplingTopReadsTooEarly)                                           \
  X(StartSlotNoBarrierAfterZeros)                                       \
  X(StartSlotCountsThePrompt)                                           \
  X(StartSlotKeepsCounts) /* Of the sequence before. */                 \
  X(FinishDrawsTakesTheNextToken)                                       \
  X(NormNoBarrierBeforeSum)                                             \
  X(NormScratchReused) /* By the second sum of a LayerNorm. */          \
  X(NormLosesTheLastColumns)                                            \
  X(NormRowOfTheToken) /* Where rows are gathered. */                   \
  X(NormBeforeWait)                                                     \
  X(GatherBeforeWait) /* The tokens of the step before. */              \
  X(GatherLosesTheLastColumns)                                          \
  X(GatedSwapsGateAndUp)                                                \
  X(GatedNoGuard)                                                       \
  X(HeadStatisticsNoBarrier)                                            \
  X(HeadStatisticsScratchReused)                                        \
  X(HeadStatisticsOfTheQueries) /* For the keys, too. */                \
  X(RopeNoSyncWarp)                                                     \
  X(RopeOneScratch) /* For all warps. */                                \
  X(RopeNormsWithTheFirstHead)                                          \
  X(RopeWritesPadding)                                                  \
  X(RopeWritesTheNextSlot)                                              \
  X(RopeBlockOfTheNextPosition)                                         \
  X(BlockCopyOneLayer)                                                  \
  X(BlockCopyLosesTheLastPiece)                                         \
  X(BeginStepBeforeWait)                                                \
  X(BeginStepTokenOfTheNextSlot)                                        \
  X(BeginStepStopsAtTheEntries)                                         \
  X(MeanPoolKeepsSums) /* Of the sequence before. */                    \
  X(MeanPoolCountsTheChunk)                                             \
  X(MeanPoolNoGuard)                                                    \
  X(PermuteScatters)                                                    \
  X(PermuteStrideOfOut)                                                 \
  X(FinishLinearBiasOfThePiece)                                         \
  X(FinishLinearNoGuard)                                                \
  X(FinishLinearLosesTheLastTokens)                                     \
  X(FinishLinearUpOfTheNextGroup)                                       \
  X(SliceTilesBeforeWait)                                               \
  X(SliceLosesTheLastTile)                                              \
  X(SliceRecordsByRow)                                                  \
  X(SliceRecordsOfOneRank)                                              \
  X(JoinSlicesNoGuard)                                                  \
  X(JoinSlicesByRow)                                                    \
  X(ProbeNoBarrier)                                                     \
  X(ProbeCopyLosesTheRest)

enum class PlantedBug : uint8_t {
  kNone,
#define QUIRE_CUDA_NAME(name) k##name,
  QUIRE_CUDA_PLANTED_BUGS(QUIRE_CUDA_NAME)
#undef QUIRE_CUDA_NAME
};

#ifdef QUIRE_CUDA_HAS_PLANTED_BUGS
#ifdef __CUDACC__
#error "planted bugs are for the emulator"
#endif
inline PlantedBug planted_bug = PlantedBug::kNone;
inline bool HasPlantedBug(PlantedBug bug) { return planted_bug == bug; }
#else
SIMT_DEVICE constexpr bool HasPlantedBug(PlantedBug) { return false; }
#endif

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_PLANTED_BUG_H_
