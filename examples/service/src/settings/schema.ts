/**
 * What can be set while the service runs: each policy with its bounds and its meaning, and the rules that hold between them. What
 * is stored and sent is a document in groups, of which only what somebody has set is there; what is in force is complete.
 */
import * as z from 'zod';
import { isAddressRange } from '../http/addresses.ts';

const DAY_SECONDS = 24 * 60 * 60;
const MINUTE_SECONDS = 60;
const MAX_RANGES = 200;

const STEP_UP_ACTIONS = ['reveal', 'share', 'approve'] as const;
export type StepUpAction = (typeof STEP_UP_ACTIONS)[number];

// With what their service accounts have; 0 for none.
const quota = z.int().min(0).max(1_000_000);
const lifeDays = z.int().min(1).max(3650).nullable();

const GROUPS = {
  mfa: z.strictObject({
    required_for: z.enum(['nobody', 'administrators', 'everyone']).describe('Who must have a second factor.'),
  }),
  step_up: z.strictObject({
    actions: z
      .array(z.enum(STEP_UP_ACTIONS))
      .refine((actions) => new Set(actions).size === actions.length, 'must name each action once')
      .describe('For which actions a person must have proven a factor just before.'),
    freshness_s: z.int().min(30).max(DAY_SECONDS).describe('For how many seconds such a proof is good.'),
    service_accounts: z
      .enum(['refused', 'allowed'])
      .describe('Whether service accounts, which have no second factor, may do what demands one of people.'),
  }),
  sessions: z.strictObject({
    length_s: z.int().min(5 * MINUTE_SECONDS).max(90 * DAY_SECONDS).describe('After how many seconds a session ends, however much it is used.'),
    idle_timeout_s: z.int().min(MINUTE_SECONDS).max(90 * DAY_SECONDS).describe('After how many seconds a session ends that nobody uses.'),
  }),
  rotation: z.strictObject({
    every_days: z.int().min(1).max(3650).nullable().describe('How old a value may be before it is due for rotation, where nothing else is said of it; null for any age.'),
    overlap_s: z.int().min(0).max(30 * DAY_SECONDS).describe('For how many seconds the old value stays good beside the new one.'),
  }),
  network: z.strictObject({
    control_plane_allowlist: z
      .array(z.string().max(64).refine(isAddressRange, 'must be an IP address or a CIDR range'))
      .min(1, 'must name at least one address or range; 0.0.0.0/0 and ::/0 are all there are')
      .max(MAX_RANGES)
      .describe('From which addresses people and programs may use the control plane. Devices have allowlists of their own.'),
  }),
  limits: z.strictObject({
    requests_per_minute: z.int().min(1).max(1_000_000).describe('Of a device that has no limit of its own.'),
    requests_per_minute_per_address: z.int().min(1).max(10_000_000).describe('Of an IPv4 address or an IPv6 /64, before anything is proven.'),
    enrollments_per_minute: z.int().min(1).max(100_000).describe('Tries to enroll, by address.'),
    sign_in_tries_per_minute: z.int().min(1).max(1000).describe('Tries to sign in, by address.'),
  }),
  quotas: z.strictObject({
    service_accounts: quota.describe('How many service accounts one person may have.'),
    projects: quota.describe('How many projects one person may have that are not archived.'),
    enrollment_codes: quota.describe('How many enrollment codes of one person may be good at the same time.'),
    invitations: quota.describe('How many invitations of one person may be open at the same time.'),
    shares: quota.describe('How many shares and one-time links of one person may count at the same time.'),
    secrets: quota.describe('How many secrets one person may have.'),
  }),
  secrets: z.strictObject({
    default_life_days: lifeDays.describe('When a new secret expires for which nothing else is said; null for never.'),
    max_life_days: lifeDays.describe('The longest life that a secret may be given; null for any.'),
  }),
  links: z.strictObject({
    max_life_s: z.int().min(MINUTE_SECONDS).max(90 * DAY_SECONDS).describe('The longest life of a one-time link.'),
    max_views: z.int().min(1).max(100).describe('How often a link may be opened at most.'),
  }),
  audit: z.strictObject({
    refusals_per_minute: z.int().min(1).max(1_000_000).describe('How many refusals of one kind to one caller are written down each minute before sampling begins.'),
    refusals_then_one_in: z.int().min(1).max(10_000).describe('Which part of the refusals beyond that is written down: each n-th, 1 for all.'),
  }),
};

export type GroupName = keyof typeof GROUPS;

const names = Object.keys(GROUPS) as GroupName[];
const each = <T>(make: (name: GroupName) => T): Record<GroupName, T> => Object.fromEntries(names.map((name) => [name, make(name)])) as Record<GroupName, T>;

const complete = z.strictObject(GROUPS);

/** All settings as they are in force, as they go over the wire. */
export type SettingsDocument = z.infer<typeof complete>;

const overrides = z.strictObject({
  mfa: GROUPS.mfa.partial().optional(),
  step_up: GROUPS.step_up.partial().optional(),
  sessions: GROUPS.sessions.partial().optional(),
  rotation: GROUPS.rotation.partial().optional(),
  network: GROUPS.network.partial().optional(),
  limits: GROUPS.limits.partial().optional(),
  quotas: GROUPS.quotas.partial().optional(),
  secrets: GROUPS.secrets.partial().optional(),
  links: GROUPS.links.partial().optional(),
  audit: GROUPS.audit.partial().optional(),
});

/** What was set, and nothing else: the rest is as the environment says. */
export type SettingsOverrides = Readonly<z.infer<typeof overrides>>;

/** `limits.requests_per_minute` and so on. */
export const SETTING_PATHS = names.flatMap((name) => Object.keys(GROUPS[name].shape).map((key) => `${name}.${key}`)) as [string, ...string[]];

/** The complete document, with the rules between its members. */
export const settingsDocument = complete
  .superRefine(({ sessions, secrets }, context) => {
    const demand = (holds: boolean, path: string[], message: string): void => {
      if (!holds) context.addIssue({ code: 'custom', path, message });
    };
    demand(sessions.idle_timeout_s <= sessions.length_s, ['sessions', 'idle_timeout_s'], 'must not be longer than sessions.length_s');
    const { default_life_days: usual, max_life_days: max } = secrets;
    demand(max === null || (usual !== null && usual <= max), ['secrets', 'default_life_days'], 'must not be longer than secrets.max_life_days');
  })
  .meta({ id: 'Settings' });

/** What to set, and what to leave to the environment again. */
export const settingsPatch = overrides.extend({
  reset: z.array(z.enum(SETTING_PATHS)).max(SETTING_PATHS.length).optional().describe('What shall be as the environment says again.'),
});
export type SettingsPatch = z.infer<typeof settingsPatch>;

const stored = z.object(each((name) => z.object(GROUPS[name].shape).partial().optional()));

/**
 * What a stored document sets. A later version of this program may have written it: then what this one does not know is left out,
 * and `isWhole` is `false`.
 * @throws ZodError for one that sets a known thing to what it cannot be
 */
export function readOverrides(document: unknown): { readonly overrides: SettingsOverrides; readonly isWhole: boolean } {
  return { overrides: stored.parse(document) as SettingsOverrides, isWhole: overrides.safeParse(document).success };
}

/** What the environment says, where nobody has set anything. */
export interface SettingsDefaults {
  readonly requestsPerMinute: number;
  readonly enrollmentsPerMinute: number;
}

export function defaultDocument({ requestsPerMinute, enrollmentsPerMinute }: SettingsDefaults): SettingsDocument {
  return {
    mfa: { required_for: 'nobody' },
    // Nobody has a second factor where nobody has set one up yet.
    step_up: { actions: [], freshness_s: 10 * MINUTE_SECONDS, service_accounts: 'refused' },
    sessions: { length_s: DAY_SECONDS, idle_timeout_s: DAY_SECONDS },
    rotation: { every_days: 90, overlap_s: DAY_SECONDS },
    network: { control_plane_allowlist: ['0.0.0.0/0', '::/0'] },
    limits: {
      requests_per_minute: requestsPerMinute,
      requests_per_minute_per_address: 6000,
      enrollments_per_minute: enrollmentsPerMinute,
      sign_in_tries_per_minute: 10,
    },
    quotas: { service_accounts: 100, projects: 100, enrollment_codes: 200, invitations: 200, shares: 2000, secrets: 10_000 },
    secrets: { default_life_days: null, max_life_days: null },
    links: { max_life_s: 7 * DAY_SECONDS, max_views: 10 },
    audit: { refusals_per_minute: 60, refusals_then_one_in: 1 },
  };
}

/** What is in force when `overrides` are set over `defaults`. @throws ZodError where the whole does not hold together */
export function applied(defaults: SettingsDocument, overrides: SettingsOverrides): SettingsDocument {
  return settingsDocument.parse(each((name) => ({ ...defaults[name], ...overrides[name] })));
}

/** `overrides` after `patch`. */
export function patched(overrides: SettingsOverrides, { reset = [], ...groups }: SettingsPatch): SettingsOverrides {
  const result: Record<string, Record<string, unknown>> = {};
  for (const name of names) {
    const members = Object.entries({ ...overrides[name], ...groups[name] }).filter(([key, value]) => value !== undefined && !reset.includes(`${name}.${key}`));
    if (members.length > 0) result[name] = Object.fromEntries(members);
  }
  return result as SettingsOverrides;
}

/** One setting that two documents have differently; left out in `from` or `to` where it was or is not set. */
export interface SettingsChange {
  readonly setting: string;
  readonly from?: unknown;
  readonly to?: unknown;
}

export function changesBetween(before: SettingsOverrides, after: SettingsOverrides): readonly SettingsChange[] {
  const valueAt = (of: SettingsOverrides, path: string): unknown => {
    const [group, key] = path.split('.') as [GroupName, string];
    return (of[group] as Record<string, unknown> | undefined)?.[key];
  };
  return SETTING_PATHS.map((setting) => ({ setting, from: valueAt(before, setting), to: valueAt(after, setting) }))
    .filter(({ from, to }) => JSON.stringify(from) !== JSON.stringify(to))
    .map(({ setting, from, to }) => ({ setting, ...(from !== undefined && { from }), ...(to !== undefined && { to }) }));
}
