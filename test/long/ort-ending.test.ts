import { testEndings } from '../support/ort-endings.js';

// What test/adapters/ort-ending.test.ts shows at one moment of each kind of work.

testEndings(true);
