// Events, waits and contexts of the asynchronous copies, each taken out.

export const file = 'csrc/device/cuda_stream.cc';

export default [
  {
    name: 'event-wait',
    find: 'if (arrived.ok()) arrived = FST_CUDA_CHECK(api(), EventSynchronize, next.event);',
    replace: '',
    native: 'CudaStreamTest.ACompletionComesWhenAllPiecesHaveArrived',
  },
  {
    name: 'event-record',
    find: 'if (status.ok()) status = FST_CUDA_CHECK(api, EventRecord, event, state.stream);',
    replace: '',
    native: 'CudaStreamTest.ACompletionComesWhenAllPiecesHaveArrived',
  },
  {
    name: 'record-before-the-copies',
    edits: [
      {
        find: `  Status status;
  for (size_t i = 0; i < count && status.ok(); ++i) {`,
        replace: `  Status status = FST_CUDA_CHECK(api, EventRecord, event, state.stream);
  for (size_t i = 0; i < count && status.ok(); ++i) {`,
      },
      { find: 'if (status.ok()) status = FST_CUDA_CHECK(api, EventRecord, event, state.stream);', replace: '' },
    ],
    native: 'CudaFaultsTest.EachCallOfALoadThroughPageLockedSlots',
  },
  {
    name: 'context-of-the-waiting-thread',
    find: 'Status arrived = device->MakeCurrent();',
    replace: 'Status arrived;',
    native: 'CudaStreamTest.ACompletionComesWhenAllPiecesHaveArrived',
  },
  {
    name: 'drain-after-a-failed-wait',
    find: 'if (!arrived.ok()) Drain();',
    replace: '',
    native: 'CudaStreamTest.AFailedWaitCompletesWhenNoCopyIsOnItsWay',
  },
  {
    name: 'context-of-the-drain',
    find: 'if (!device->MakeCurrent().ok() && !device->MakeCurrent().ok()) return;',
    replace: '',
    native: 'CudaStreamTest.AFailedWaitCompletesWhenNoCopyIsOnItsWay',
  },
  {
    name: 'drain-after-a-refusal',
    find: 'state.Drain();',
    replace: '',
    native: 'CudaStreamTest.ARefusedSubmissionReturnsWhenNoPieceIsOnItsWay',
  },
  {
    name: 'wait-of-the-drain',
    find: 'if (api().StreamSynchronize(stream) != cuda::kSuccess) api().StreamSynchronize(stream);',
    replace: '',
    native: 'CudaStreamTest.ARefusedSubmissionReturnsWhenNoPieceIsOnItsWay',
  },
  {
    name: 'second-context-of-the-drain',
    find: 'if (!device->MakeCurrent().ok() && !device->MakeCurrent().ok()) return;',
    replace: 'if (!device->MakeCurrent().ok()) return;',
    native: 'CudaStreamTest.ADrainTriesTwice',
  },
  {
    name: 'second-wait-of-the-drain',
    find: 'if (api().StreamSynchronize(stream) != cuda::kSuccess) api().StreamSynchronize(stream);',
    replace: 'api().StreamSynchronize(stream);',
    native: 'CudaStreamTest.ADrainTriesTwice',
  },
  {
    name: 'context-where-a-stream-is-made',
    find: 'FST_RETURN_IF_ERROR(state->device->MakeCurrent());',
    replace: '',
    native: 'CudaStreamTest.OperationsMakeTheirOwnContextCurrent',
  },
  {
    name: 'context-where-a-stream-is-used',
    find: 'FST_RETURN_IF_ERROR(state.device->MakeCurrent());',
    replace: '',
    native: 'CudaStreamTest.OperationsMakeTheirOwnContextCurrent',
  },
  {
    name: 'context-where-a-stream-ends',
    find: 'state_->device->MakeCurrentForRelease();',
    replace: '',
    native: 'CudaStreamTest.OperationsMakeTheirOwnContextCurrent',
  },
  {
    name: 'wait-for-the-thread-of-a-stream',
    find: 'state_->ended.wait(lock, [this] { return state_->stopped; });',
    replace: '',
    native: 'CudaStreamTest.TheEndOfAStreamWaitsForItsCopies',
  },
];
