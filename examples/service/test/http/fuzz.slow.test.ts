/** Hostile input for every operation, at length, and other input each time. */
import { describeFuzz } from './fuzz.ts';

describeFuzz(60, Date.now() % 2 ** 31);
