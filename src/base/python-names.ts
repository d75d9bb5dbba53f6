interface PythonName {
  /** The option here that comes nearest: what is said helps where that one is known. */
  readonly option: string;
  readonly says: string;
}

/** Arguments of fastsafetensors (Python) whose names alone do not lead to what is here, in lower case without `_`. */
const NAMES: Readonly<Record<string, PythonName>> = {
  bbufsizekb: { option: 'bounceBufferSize', says: 'bounceBufferSize, in bytes: KiB * 1024' },
  usetqdmonload: { option: 'progress', says: 'progress: true draws a bar of bytes, and false is the default' },
  disablecache: {
    option: 'dropCache',
    says: 'nothing: no tensors that ranks have exchanged are kept (dropCache is about the page cache)',
  },
  maxconcurrentproducers: { option: 'maxThreads', says: 'nothing: one engine reads, with maxThreads threads' },
  alllocal: { option: 'pg', says: 'nothing: each process loads its own files; leave pg out' },
  usefgds: { option: 'copier', says: "copier: there is no FGDS, and 'gds' is GPUDirect Storage" },
  copiertype: { option: 'copier', says: "copier, and with fallback: 'nogds' a preference as there" },
  overlapio: { option: 'maxThreads', says: 'nothing: reads, copies and your code always overlap' },
  maxcopyblocksize: { option: 'bounceBufferSize', says: 'bounceBufferSize: bytes of one read through a staging slot' },
  chunksize: { option: 'bounceBufferSize', says: 'bounceBufferSize: bytes of one read through a staging slot' },
  usebufregister: { option: 'copier', says: 'nothing: memory is registered where the copier can' },
  hfweightsfiles: { option: 'files', says: 'files: paths, a folder or an index' },
  filenames: { option: 'files', says: 'files: paths, a folder or an index' },
  tensorfilter: { option: 'filter', says: 'filter: (name, frame) => boolean' },
  borrowedtensors: { option: 'borrow', says: 'borrow: true' },
  usepipeline: { option: 'queueSize', says: 'queueSize: -1 is serial, 0 (the default) and more load ahead' },
  usechunkbudgetasallocationsize: {
    option: 'maxBatchBytes',
    says: 'nothing: memory is allocated as tensors need it, a batch of maxBatchBytes at a time',
  },
  accumulateresident: { option: 'deviceMemoryBudget', says: 'nothing: it is about memory budgets' },
  residenttensor: { option: 'deviceMemoryBudget', says: 'nothing: it is about memory budgets' },
  broadcastrunbytes: { option: 'pg', says: 'nothing: ranks do not send tensors to each other' },
  broadcastruntensors: { option: 'pg', says: 'nothing: ranks do not send tensors to each other' },
  allowinflight: { option: 'maxThreads', says: 'nothing: ParallelLoader hands tensors out as their bytes arrive' },
  useshm: { option: 'copier', says: 'nothing: there is no option of this kind' },
  numthreads: { option: 'threads', says: 'threads' },
};

/** What an argument of fastsafetensors is here; undefined for other names. `plain`: in lower case without `_`. */
export function fromPython(plain: string): PythonName | undefined {
  return Object.hasOwn(NAMES, plain) ? NAMES[plain] : undefined;
}
