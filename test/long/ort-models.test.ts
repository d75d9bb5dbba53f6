/** @jest-environment ./test/support/native-arrays-environment.js */
import { testRoutes } from '../support/ort-routes.js';

// What test/adapters/ort-models.test.ts shows of 5 inputs of each model.

testRoutes(100);
