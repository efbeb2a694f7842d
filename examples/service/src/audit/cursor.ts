import * as z from 'zod';

/** A cursor of the log is the number of the last entry that was shown. */
export const seqCursor: z.ZodString = z.string().regex(/^(?:0|[1-9][0-9]{0,15})$/, 'is not one that was handed out');
