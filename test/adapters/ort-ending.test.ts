import { testEndings } from '../support/ort-endings.js';

// test/long has more moments of each.

testEndings(false);
