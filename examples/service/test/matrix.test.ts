/** Every operation of the control plane as every principal: what each is answered, and that nobody is told what is not theirs. */
import { describeMatrix } from './matrix/run.ts';

describeMatrix('as it is');
