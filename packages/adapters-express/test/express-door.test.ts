/** The attack suites through the Express door, in each carriage. */
import { describe } from 'vitest';
import { attacks, enrollmentAttacks, rotationAttacks } from '@keyguard/conformance/attacks';
import type { Carriage } from '@keyguard/core/canonical';
import { expressDoor } from './wire.ts';

describe.each<Carriage>(['headers', 'rfc9421'])('in the carriage %s', (carriage) => {
  describe('verification', () => {
    attacks(expressDoor, carriage);
  });
  describe('enrollment', () => {
    enrollmentAttacks(expressDoor, carriage);
  });
  describe('rotation', () => {
    rotationAttacks(expressDoor, carriage);
  });
});
