export { type Emulator, emulators } from './emulators.js';
export { type FakeDeviceOptions, type FakeReaderOptions, fakeReader, useFakeDevices } from './fakes.js';
export { type MockCopierOptions, mockCopier } from './mock-copier.js';
export type { MockTensor } from './mock-header.js';
