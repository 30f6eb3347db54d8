package union

// bug is a mistake in what keeps data safe, made on purpose. A test binary built with the tag mutants can make any one of them,
// and the crash simulator must notice; see TestMutants. In all other builds seeded is false and its conditions cost nothing.
type bug uint8

const (
	noBug bug = iota

	// Slots used again too early.
	bugReleaseAtRecord       // a superseded slot is free as soon as its successor is recorded
	bugReleaseAtLogWrite     // when the log is written, and before the device is flushed
	bugFUAFrees              // when a FUA write has written the log
	bugDiscardFreesEarly     // what is discarded is free at once
	bugMergeFreesEarly       // what a merge supersedes is free at once
	bugMergeFreesMaps        // the map that a merge replaces is free at once
	bugMapFreedEarly         // what a checkpoint replaces is free before the superblocks name the new state
	bugCatalogFreedEarly     // so is the catalog
	bugRemoveFreesEarly      // a removed layer's data is free before the checkpoint that forgets it
	bugEpochsIgnored         // although a request still reads it
	bugReplayFreesSuperseded // what pending records superseded is free before the recovered state is durable
	bugReplayOwnsNothing     // slots of replayed records count as free

	// Flushes that cover too little.
	bugFlushSkipsOpen // not the records of the block that is not full
	bugFlushBesideLog // the device is flushed before the log is written
	bugNoDeviceFlush  // the device is not flushed at all
	bugCommitNoFlush  // not by a commit in the background
	bugFreezeNoCommit // a freeze is not committed
	bugFUAVolatile    // a FUA write is written without the bit
	bugAckFailedFlush // a flush that failed is acknowledged
	bugErrorNotSticky // and the store goes on

	// The log.
	bugFUADurable      // a FUA write calls durable what no flush covered
	bugClaimsDurable   // a block calls its predecessor durable before it is
	bugOneLogCopy      // a flush writes one copy
	bugCommitOneCopy   // a commit in the background does
	bugLogOverrun      // blocks that a recovery needs are written over
	bugCountLags       // the last record of a block is not counted
	bugSealTextMissing // the name of a sealed layer is left out
	bugSealSplit       // or goes on in another block
	bugSequenceReuse   // a recovery uses sequence numbers again

	// Checkpoints.
	bugCheckpointNoFlush    // no flush before the superblocks
	bugCheckpointWithoutLog // maps may be newer than the log
	bugStartTooLate         // the log's start is after records that the maps lack
	bugStartMovedEarly      // it moves before the superblocks are durable
	bugOneSuperblock        // one superblock is written
	bugSuperblocksTogether  // no flush between the two
	bugBitmapStale          // the bitmap of slots is not written
	bugCatalogAlone         // the catalog is written without the maps that it needs

	// Recovery.
	bugNoDataCheck      // data need not have arrived
	bugTrustsFirstBlock // nor that of the first block that no flush covered
	bugDurableIgnored   // a durable block may be missing
	bugOldSuperblock    // the older superblock is taken
	bugNotLevelled      // the older superblock stays
	bugLevelledNoFlush  // it is replaced without a flush
	bugReplayUnflushed  // what is replayed need not be durable
	bugLayerNumberReuse // the number of a sealed layer is given again

	// The death of the process.
	bugRingPrivate      // records are in memory that dies with it
	bugRingForgotten    // or nobody reads them
	bugPublishEarly     // the new ring replaces the old one before its records are durable
	bugRingNotPublished // or never

	// Requests.
	bugDiscardToRoot  // what is discarded shows the root
	bugEdgesForgotten // a write of a part of a block forgets what another wrote to the same block meanwhile

	bugs // the number of them
)
