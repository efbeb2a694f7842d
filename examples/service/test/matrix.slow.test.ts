/** The same with one of the two layers taken away: the other one holds alone. */
import { describeMatrix } from './matrix/run.ts';

describeMatrix('without row-level security');
describeMatrix('without the application’s check');
