/** Hostile input for every operation, briefly. */
import { describeFuzz } from './fuzz.ts';

describeFuzz(6, 20_261_123);
