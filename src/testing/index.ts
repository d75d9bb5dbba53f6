export { type FakeDeviceOptions, type FakeReaderOptions, fakeReader, useFakeDevices } from './fakes.js';
export { type MockCopierOptions, mockCopier } from './mock-copier.js';
