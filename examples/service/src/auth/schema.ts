import * as z from 'zod';
import { time } from '../http/pagination.ts';
import { MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS } from '../config.ts';

export const email = z.email().max(254).transform((text) => text.toLowerCase());

export const newPassword = z
  .string()
  .refine((text) => [...text].length >= MIN_PASSWORD_CHARACTERS, `must have at least ${MIN_PASSWORD_CHARACTERS} characters`)
  .refine((text) => [...text].length <= MAX_PASSWORD_CHARACTERS, `must have at most ${MAX_PASSWORD_CHARACTERS} characters`);

/** New ids of people and sessions are UUIDs; older ones are other texts. */
export const textId = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/);
export const userParams = z.strictObject({ id: textId });

export const setupBody = z.strictObject({
  code: z.string().max(64),
  email,
  password: newPassword,
  name: z.string().trim().min(1).max(100).optional(),
});

export const signInBody = z.strictObject({
  email: z.string().max(254),
  password: z.string().max(1024),
});

export const changePasswordBody = z.strictObject({
  current_password: z.string().max(1024),
  new_password: newPassword,
});

const user = z.object({ id: z.string(), email: z.string(), name: z.string() }).meta({ id: 'User' });

export const administrator = z.object({ user_id: z.string(), email: z.string() });

export const signedIn = z.object({ user });

export const signInAnswer = z.object({
  user,
  second_factor: z
    .enum(['none', 'required', 'setup_required'])
    .describe('`required`: the session opens nothing until a code went to POST /api/auth/step-up. `setup_required`: nothing until a second factor is set up.'),
});

export const session = z.object({ user, session: z.object({ id: z.string(), expires_at: time }) });

export const done = z.looseObject({});

export const token = z.object({ token: z.string().describe('To be sent as a bearer.') });

export const jwks = z.object({
  keys: z.array(z.looseObject({ kty: z.string(), kid: z.string(), alg: z.string() })),
});
