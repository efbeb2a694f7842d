/**
 * The composition: database → keys → seams → routes → listen, and the same way back when it stops. What is decided in other files
 * is only put together here.
 */
import type { Logger } from 'pino';
import { isUnavailable } from '@keyguard/core/errors';
import type { AuditEntry, Clock, RateLimiter } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import {
  cachedDeviceRegistry,
  createEnrollment,
  createRotation,
  createVerifier,
  definePolicy,
  memoryRateLimiter,
  type PolicyOptions,
} from '@keyguard/server-verifier';
import { ipBucket } from '@keyguard/server-verifier/ip';
import {
  postgresAdministrators,
  postgresDeviceDirectory,
  postgresKeyRecords,
  postgresReplayStore,
} from '@keyguard/storage-node/postgres';
import { providerKeys } from './api-keys/provider-keys.ts';
import { apiKeyOperations } from './api-keys/operations.ts';
import { versionsOfKeys } from './api-keys/sealing.ts';
import { createApiKeys } from './api-keys/store.ts';
import { keyUpstreams } from './api-keys/upstreams.ts';
import { keyUses } from './api-keys/uses.ts';
import { createApp } from './app.ts';
import { admitting } from './budgets/admitting.ts';
import { purgeWindows, settleLost } from './budgets/charging.ts';
import { budgetOperations } from './budgets/operations.ts';
import { budgetStandings } from './budgets/standings.ts';
import { createBudgets } from './budgets/store.ts';
import { checkpointStore } from './audit/checkpoint-store.ts';
import { createCheckpoints } from './audit/checkpoints.ts';
import { keptCheckpoints } from './audit/kept.ts';
import { auditLog, refusalEntry } from './audit/log.ts';
import { refusalSampler } from './audit/refusal-sampling.ts';
import { strangers } from './audit/strangers.ts';
import { createMacRotation } from './audit/mac-rotation.ts';
import { auditOperations } from './audit/operations.ts';
import { assertNotRolledBack } from './audit/rollback.ts';
import { adoptPeople } from './auth/adopted-people.ts';
import { createAuth } from './auth/better-auth.ts';
import { authDoor } from './auth/door.ts';
import { authOperations } from './auth/operations.ts';
import { invitationOperations } from './auth/invitation-operations.ts';
import { createOidcSignIn } from './auth/oidc.ts';
import { oidcOperations } from './auth/oidc-operations.ts';
import { createPeople } from './auth/people.ts';
import { demandStepUp, policyOf, type SignInPolicy, type StepUpAction } from './auth/policy.ts';
import { authenticate, sessionFinder, type Principal } from './auth/principal.ts';
import { sealedSecondFactors } from './auth/second-factor.ts';
import { secondFactorOperations } from './auth/second-factor-operations.ts';
import { sessionOperations } from './auth/session-operations.ts';
import { createSetup } from './auth/setup.ts';
import type { Vouching } from './auth/vouched-people.ts';
import type { Config } from './config.ts';
import type { Database } from './db/connect.ts';
import { asVerifier } from './db/as-user.ts';
import { openDatabase } from './db/open.ts';
import { openRedis } from './db/redis.ts';
import { holdRoot } from './db/root-lock.ts';
import { auditedRegistry } from './devices/enrolling.ts';
import { deviceOperations } from './devices/operations.ts';
import { sightings } from './devices/sightings.ts';
import { watchDevices } from './devices/watching.ts';
import { boundCursors } from './http/cursors.ts';
import { healthRoutes } from './http/health.ts';
import { createIdempotency, sealedReplies } from './http/idempotency.ts';
import { jsonReader } from './http/json-body.ts';
import { listen } from './http/listener.ts';
import { openApiOperations } from './http/openapi.ts';
import { arrivedAtMs, currentRequest } from './http/request-context.ts';
import { operationRouter, type Operation } from './http/operations.ts';
import { openDeploymentKeys } from './keys/hierarchy.ts';
import { runKekRotation } from './keys/kek-rotation.ts';
import { keyOperations } from './keys/operations.ts';
import type { SealedTable } from './keys/sealed-tables.ts';
import { bodyLimits, MAX_CALL_BYTES } from './llm/body-limits.ts';
import { callAuditEntry } from './llm/call-events.ts';
import { startDemoUpstream } from './llm/demo-upstream.ts';
import { PROVIDERS } from './llm/providers.ts';
import { llmProxy } from './llm/routes.ts';
import { modelLists } from './llm/model-lists.ts';
import { describeError } from './log.ts';
import { peopleOperations } from './people/operations.ts';
import { createPeopleDirectory } from './people/store.ts';
import { projectOperations } from './projects/operations.ts';
import { projectGrants } from './projects/grants.ts';
import { createProjects } from './projects/store.ts';
import { createAccess, type ReachAccess } from './roles/access.ts';
import { createAssignments } from './roles/assignments.ts';
import { roleOperations } from './roles/operations.ts';
import { createRoles } from './roles/store.ts';
import { secretOperations } from './secrets/operations.ts';
import { sealedVersions, versionsOfSecrets } from './secrets/rows.ts';
import { createLinks } from './secrets/shares-links.ts';
import { shareOperations } from './secrets/shares-operations.ts';
import { linkPage } from './secrets/shares-page.ts';
import type { OnTamperedShare } from './secrets/shares.ts';
import { createShares } from './secrets/shares-store.ts';
import { createSecretStore } from './secrets/store.ts';
import { prepareSystemRoles } from './roles/system-roles.ts';
import { serviceAccountAuthentication } from './service-accounts/authenticate.ts';
import { serviceAccountOperations } from './service-accounts/operations.ts';
import { createServiceAccounts } from './service-accounts/store.ts';
import { following } from './settings/limits.ts';
import { followSettings } from './settings/live.ts';
import { createQuotas } from './settings/quotas.ts';
import type { SettingsDocument } from './settings/schema.ts';
import { usageOperations, usageReport } from './usage/operations.ts';
import { priceList } from './usage/prices.ts';
import { usageProjection } from './usage/projection.ts';
import { settingsOperations } from './settings/operations.ts';

const MAX_UNVERIFIED_BYTES = 256 * 1024 * 1024;
const UPLOADS_AT_A_TIME = 4;
const DRAIN_MS = 28_000;
const STOP_MS = 30_000;
const PURGE_EVERY_MS = 60_000;
const CHECKPOINTS_EVERY_MS = 1000;
const USAGE_EVERY_MS = 1000;
const MAC_KEYS_EVERY_MS = 1000;
const FLUSH_EVERY_MS = 5_000;
const REVIEW_EVERY_MS = 500;
// No call runs so long: an hour is the most, and its end is summed up within seconds.
const LOST_CALL_MS = 70 * 60_000;
const WINDOWS_KEPT_MS = 400 * 24 * 60 * 60_000;
const SETUP_TRIES_PER_MINUTE = 10;
const LINK_TRIES_PER_MINUTE = 20;
// A whole office may have one address, and a sign-in has two steps.
const OIDC_STEPS_PER_MINUTE = 120;
const ROTATIONS_PER_MINUTE = 10;
const PROBES_PER_MINUTE = 60;
const LINKS_OPENED_PER_MINUTE = 60;
const ADDRESSES_NAMED_PER_MINUTE = 30;
const COMMAND = 'npx -y pnpm@12.21.0 keyguard';

export interface Service {
  /** Lets what runs come to its end within half a minute, then closes everything. */
  stop(): Promise<void>;
}

export interface StartOptions {
  /** Its data folder MUST be locked by the caller, and stay so until the service has stopped. */
  readonly config: Config;
  readonly log: Logger;
  /** Writes to the terminal: the setup code goes there, and nowhere else. */
  readonly say: (text: string) => void;
  /** For tests, which take one layer away to see whether the other holds. Nothing that is configured reaches this. */
  readonly overrides?: Overrides;
}

export interface Overrides {
  /** Gets the database that was opened, and answers with the one to use. */
  readonly database?: (opened: Database) => Database;
  /** The time of sign-in: of second factors, locks and links. */
  readonly clock?: Clock;
  readonly signInPolicy?: () => SignInPolicy;
  /** Gets what decides who may do what with a row, and answers with what decides in its place. */
  readonly access?: (decides: ReachAccess) => ReachAccess;
}

/** Every table of sealed values. A key encryption key under which another one has rows is never disabled. */
export function sealedTables(deploymentId: string): readonly SealedTable[] {
  return [sealedReplies(deploymentId), sealedVersions([versionsOfSecrets(deploymentId), versionsOfKeys(deploymentId)]), sealedSecondFactors(deploymentId)];
}

/** Starts everything; what was started is stopped again where a later part fails. */
export async function startService(options: StartOptions): Promise<Service> {
  const undo: (() => unknown)[] = [];
  try {
    return await compose(options, undo);
  } catch (error) {
    for (const step of undo.toReversed()) await step();
    throw error;
  }
}

async function compose({ config, log, say, overrides = {} }: StartOptions, undo: (() => unknown)[]): Promise<Service> {
  const onFault = (error: unknown, requestId?: string): void => {
    log.error({ requestId, error: describeError(error) }, isUnavailable(error) ? 'something that is needed did not answer' : 'a request failed');
  };

  const { server, port, serve } = await listen(config);
  undo.push(() => {
    server.close();
    server.closeAllConnections();
  });

  const opened = await openDatabase(config, log);
  const database = overrides.database?.(opened) ?? opened;
  undo.push(() => database.close());
  const { sql, calls, prompt } = database;

  const rootLock =
    config.database.kind === 'postgres' ? await holdRoot(config.database.url, () => log.warn('the session that holds the root key as it is broke, and is made anew')) : null;
  undo.push(() => rootLock?.release());
  const keys = await openDeploymentKeys(postgresKeyRecords(sql), config.rootKey);
  // Before anything is appended: a log that is not the one that was signed for must not go on as if it were.
  const kept = keptCheckpoints(config.checkpointDir);
  const chain = await assertNotRolledBack({ sql, keys, kept, acknowledged: config.acknowledgedRestore });
  const audit = auditLog(calls, keys, { origin: chain.origin });
  const store = await checkpointStore(sql, chain.origin, keys.checkpointSigner);
  const checkpoints = createCheckpoints({ sql, keys, store, kept, audit });
  const macRotation = createMacRotation({ sql, auditMac: keys.auditMac, audit });
  // So that what was answered for does not have to be answered for again.
  if (config.acknowledgedRestore !== null) await checkpoints.sign();
  const clock = overrides.clock ?? systemClock;
  const decides = createAccess({ rowMacKey: keys.rowMacKey, clock });
  const access = overrides.access?.(decides) ?? decides;
  const grants = projectGrants(sql, keys.rowMacKey);
  const quotas = createQuotas({ limits: () => settings.current().quotas, clock });
  const projects = createProjects({ sql, rowMacKey: keys.rowMacKey, access, audit, quotas, clock, onChanged: (id) => grants.forget(id) });
  const administrators = postgresAdministrators(sql, { rowMacKey: keys.rowMacKey });
  const kekRotation = runKekRotation({ sql, prompt, keyring: keys.kek, tables: sealedTables(keys.deploymentId), audit, log });
  undo.push(() => kekRotation.stop());
  const systemRoles = await prepareSystemRoles({ sql, rowMacKey: keys.rowMacKey, clock: systemClock });
  if (systemRoles.tampered.length > 0) log.error({ roles: systemRoles.tampered }, 'system roles had been changed in the database, and were written anew');
  if (systemRoles.taken.length > 0) log.warn({ roles: systemRoles.taken }, 'roles of people have the names of system roles, which are therefore missing');

  const settings = await followSettings({
    sql: prompt,
    rowMacKey: keys.rowMacKey,
    defaults: config,
    onFailure: (error) => log.warn({ error: describeError(error) }, 'the settings cannot be read'),
    onChanged: (version) => log.info({ version }, 'the settings changed'),
  });
  undo.push(() => settings.stop());

  // Where people and devices reach us. The signed authority is one of these, never what a header says it is.
  const loopback = [`http://localhost:${port}`, `http://127.0.0.1:${port}`].map((url) => new URL(url).origin);
  const origins = (config.publicOrigin === null ? loopback : [config.publicOrigin]) as [string, ...string[]];
  const policy: PolicyOptions = {
    authorities: origins.map((origin) => new URL(origin).host),
    maxBodyBytes: Math.max(MAX_CALL_BYTES, config.maxUploadBytes),
    maxUnverifiedBytes: Math.max(MAX_UNVERIFIED_BYTES, UPLOADS_AT_A_TIME * config.maxUploadBytes),
    requestsPerMinute: config.requestsPerMinute,
  };

  const redis =
    config.redisUrl === null ? null : await openRedis(config.redisUrl, (error) => log.warn({ error: describeError(error) }, 'the connection to Redis broke'));
  if (redis !== null) undo.push(() => redis.close());
  const limiter = (name: string, perMinute: number): RateLimiter => redis?.limiter(name, perMinute) ?? memoryRateLimiter({ perMinute });
  const nonces = postgresReplayStore(calls);
  // Devices are kept in memory; every replica hears within a second of what another one changed.
  const watch = watchDevices(prompt, log);
  undo.push(() => watch.stop());
  const registry = cachedDeviceRegistry(auditedRegistry(calls, keys, audit), watch);
  const sampled = refusalSampler(() => {
    const { refusals_per_minute: perMinute, refusals_then_one_in: thenOneIn } = settings.current().audit;
    return { perMinute, thenOneIn };
  });
  const unknown = strangers({ record: (entry) => audit.recordAsIs(entry) });
  const recordRefusal = async (kind: string, entry: AuditEntry, isTrifle = false): Promise<void> => {
    const ip = currentRequest()?.ip ?? null;
    const isKnown = entry.actor !== 'unknown';
    const ofCaller = isKnown ? kind : `${kind} ${ipBucket(ip)}`;
    // Whoever is over a limit must not make the log do the work that the limit saves.
    if (!isKnown && (isTrifle || entry['code'] === 'rate_limited')) return unknown.count(ofCaller, entry, ip);
    if (!isKnown && !unknown.admit(ofCaller, entry, ip)) return;
    const written = sampled(ofCaller, entry);
    if (written !== null) await audit.record(written);
  };
  const verification = {
    policy,
    requestsPerMinute: () => settings.current().limits.requests_per_minute,
    registry,
    replayStore: redis?.replayStore ?? nonces,
    ipLimiter: following(limiter('ip', definePolicy(policy).requestsPerMinutePerIp), () => settings.current().limits.requests_per_minute_per_address),
    deviceLimiter: limiter('device', config.requestsPerMinute),
    onRejected: async (event: Parameters<typeof refusalEntry>[0]): Promise<void> => {
      if (isUnavailable(event.error)) onFault(event.error);
      const entry = refusalEntry(event);
      if (entry !== null) await recordRefusal(event.deviceId === null ? event.error.code : `${event.error.code} ${event.deviceId}`, entry);
    },
  };
  const verifier = createVerifier(verification);
  const enrollment = createEnrollment({
    ...verification,
    enrollmentLimiter: following(limiter('enrollment', config.enrollmentsPerMinute), () => settings.current().limits.enrollments_per_minute),
    keyFingerprint: keys.keyFingerprint,
  });
  const rotation = createRotation({ ...verification, rotationLimiter: limiter('rotation', ROTATIONS_PER_MINUTE) });

  // Where provider keys may be sent is said here, by the operator, and nowhere else.
  const upstreams = new Map([...config.providers].flatMap(([name, { upstream }]) => (upstream === null ? [] : [[name, upstream] as const])));
  const [demonstrated] = PROVIDERS as readonly [(typeof PROVIDERS)[number]];
  const demo = (config.providers.get(demonstrated.name)?.apiKey ?? null) === null ? await startDemoUpstream() : null;
  if (demo !== null) undo.push(() => demo.close());
  const placed = keyUpstreams({ configured: upstreams, allowedOrigins: config.upstreamOrigins });
  const rotationSettings = (): SettingsDocument['rotation'] => settings.current().rotation;
  const apiKeys = createApiKeys({
    sql, keys, audit, projects, clock, upstreams: placed, rotation: rotationSettings, probeLimiter: limiter('probe', PROBES_PER_MINUTE), onChanged: () => providers.clear(),
  });
  const uses = keyUses(sql);
  const providers = providerKeys({
    apiKeys: () => apiKeys, upstreams: placed, demo: demo === null ? null : { provider: demonstrated.name, key: demo }, onUsed: (id) => uses.note(id), clock,
  });
  // Also where there is no key to import: it makes the project that everything belongs to, and vouches for keys of before.
  await apiKeys.prepare();
  for (const { name, keyVariable } of PROVIDERS) {
    const apiKey = config.providers.get(name)?.apiKey ?? null;
    if (apiKey === null || !upstreams.has(name)) continue;
    const outcome = await apiKeys.importFromEnvironment(name, apiKey);
    if (outcome === 'stored') log.info(`${keyVariable} was sealed into project default`);
  }
  const isDemo = demo !== null && !(await apiKeys.hasAny(demonstrated.name));

  const standings = budgetStandings(sql, keys.rowMacKey);
  const prices = priceList(config.prices);
  const proxy = llmProxy({
    providerKeys: (device, provider) => providers.find(device, provider),
    modelLists: (device) => modelLists(device, grants),
    // An ending is written when its request may be over: it is joined to its beginning by the call's id.
    audit: (event) => (event.type === 'ended' ? audit.recordAsIs(callAuditEntry(event)) : audit.record(callAuditEntry(event))),
    recheck: (keyId, ip) => verifier.recheck(keyId, ip),
    admit: admitting({ sql, standings, prices, clock, onFault }),
    price: (provider, tokens) => prices.costOf(provider, tokens.model, tokens),
    arrivedAtMs,
    onFault,
  });
  undo.push(() => proxy.close());

  const signInPolicy = overrides.signInPolicy ?? ((): SignInPolicy => policyOf(settings.current()));
  // Once a minute for each: whoever looks again and again makes the log no longer.
  const sampledTampering = refusalSampler(() => ({ perMinute: 1, thenOneIn: Number.MAX_SAFE_INTEGER }));
  const vouching: Vouching = {
    rowMacKey: keys.rowMacKey,
    onTamperedPerson(userId) {
      const entry = sampledTampering(`user:${userId}`, { action: 'auth.tampered', outcome: 'failed', actor: 'system', resource: `user:${userId}` });
      if (entry === null) return;
      log.error({ userId }, 'what a person signs in by was changed in the database: they are refused');
      // Not waited for: whoever met it is in a transaction, and nobody was let in by it.
      audit.record(entry).catch(onFault);
    },
  };
  const adopted = await adoptPeople({ sql, vouching, audit });
  if (adopted > 0) log.info(`${adopted} people got the MAC that what they sign in by bears from now on; nobody gets one by a start again`);
  const people = createPeople({ sql, vouching, keys, audit, administrators, clock, policy: signInPolicy, quotas, isSecure: origins[0].startsWith('https:') });
  const auth = createAuth({ sql, keys, origins, policy: signInPolicy, signInTriesPerMinute: () => settings.current().limits.sign_in_tries_per_minute, log: (level, message) => log[level]({ from: 'better-auth' }, message) });
  const setup = createSetup({ sql, keys, audit });
  const readJson = jsonReader(definePolicy(policy));
  const seen = sightings(postgresDeviceDirectory(sql, { rowMacKey: keys.rowMacKey }));
  const idempotency = createIdempotency({ sql, keys, audit, onFault, clock });
  // One process: whatever held a key before is no more.
  if (database.embedded) await idempotency.releaseAll();
  let isStopping = false;

  const { rowMacKey, hashToken } = keys;
  const assignments = createAssignments({ sql, rowMacKey, audit, clock });
  const shutDevice = (deviceId: string): void => {
    watch.note(deviceId);
    proxy.endCallsOf(deviceId);
  };
  const serviceAccounts = serviceAccountAuthentication({
    sql,
    rowMacKey,
    hashToken,
    clock,
    record: (entry) => recordRefusal(`${entry.action} ${String(entry['resource'])}`, entry),
    onTampered: (accountId) => log.error({ accountId }, 'a service account was changed in the database: its tokens are refused'),
  });
  const authenticated = authenticate({ auth, administrators, standings: people.standings, policy: signInPolicy, serviceAccounts, origins });
  const door = authDoor(auth, origins[0]);
  const oidc =
    config.oidc === null
      ? null
      : createOidcSignIn({ config: config.oidc, origin: origins[0], sql, vouching, hash: keys.hashToken, pseudonym: keys.pseudonym, audit, invitations: people.invitations, clock });
  const onTamperedShare: OnTamperedShare = ({ id, subjectType, subjectId }) => {
    const entry = sampledTampering(id, { action: 'secret_share.tampered', outcome: 'failed', actor: 'system', resource: `${subjectType}:${subjectId}`, share_id: id });
    if (entry === null) return;
    log.error({ shareId: id }, 'a share was changed in the database: it grants nothing');
    // Not waited for: whoever met it is in a transaction, and nothing was given out by it.
    audit.record(entry).catch(onFault);
  };
  const secrets = createSecretStore({ sql, keys, audit, access, onTamperedShare, lives: () => settings.current().secrets, quotas });
  const usage = usageReport(sql);
  const stepUp = (principal: Principal, action: StepUpAction): void => demandStepUp(principal, action, signInPolicy(), clock.nowMs());
  const operations: readonly Operation[] = [
    ...authOperations({ auth, door, setup, audit, keys, setupLimiter: limiter('setup', SETUP_TRIES_PER_MINUTE), findSession: sessionFinder({ auth, origins }), ...people }),
    ...secondFactorOperations({ door, ...people }),
    ...sessionOperations({ sql, audit, ...people }),
    ...oidcOperations({ oidc, door, isSecure: origins[0].startsWith('https:'), oidcLimiter: limiter('oidc', OIDC_STEPS_PER_MINUTE), clock }),
    ...invitationOperations({ linkLimiter: limiter('link', LINK_TRIES_PER_MINUTE), clock, ...people }),
    ...deviceOperations({ sql, keys, audit, access, projects, quotas, onChanged: (deviceId) => watch.note(deviceId), onShut: (deviceId) => proxy.endCallsOf(deviceId) }),
    ...apiKeyOperations({ apiKeys, usage, rotation: rotationSettings, clock }),
    ...roleOperations({ roles: createRoles({ sql, rowMacKey, audit, clock }), assignments, clock }),
    ...peopleOperations(createPeopleDirectory({ sql, rowMacKey, audit, clock, onDeviceShut: shutDevice })),
    ...budgetOperations(createBudgets({ sql, rowMacKey, access, projects, audit, onChanged: () => standings.clear(), clock })),
    ...projectOperations({ sql, projects, assignments }),
    ...serviceAccountOperations({ accounts: createServiceAccounts({ sql, rowMacKey, hashToken, audit, quotas, clock }), clock }),
    ...usageOperations(usage),
    ...auditOperations({ sql, keys, audit, access, store, checkpoints, kept, macRotation }),
    ...secretOperations({ sql, store: secrets, demandStepUp: stepUp }),
    ...shareOperations({
      shares: createShares({ sql, keys, audit, access, secrets, quotas }),
      links: createLinks({ sql, keys, audit, access, secrets, limits: () => settings.current().links, quotas }),
      origin: origins[0],
      openLimiter: limiter('link', LINKS_OPENED_PER_MINUTE),
      addressLimiter: limiter('address', ADDRESSES_NAMED_PER_MINUTE),
    }),
    ...settingsOperations({ sql, rowMacKey: keys.rowMacKey, audit, live: settings }),
    ...keyOperations({ sql, audit, onRequested: () => kekRotation.wake() }),
  ];

  serve(
    createApp({
      trustedHops: config.trustedHops,
      allowedOrigins: config.allowedOrigins,
      isSecure: origins[0].startsWith('https:'),
      authorities: policy.authorities,
      maxBodyBytes: bodyLimits(config.maxUploadBytes),
      controlPlaneAllowlist: () => settings.current().network.control_plane_allowlist,
      health: healthRoutes({
        sql,
        devicesAreWatched: () => watch.caughtUp(),
        settingsAreKnown: () => settings.assertKnown(),
        checkRedis: redis && (() => redis.replayStore.check()),
        keysAreKnown: () => kekRotation.assertKeysKnown(),
        databaseIsWritten: () => kekRotation.assertWritten(),
        checkAuditHead: () =>
          asVerifier(prompt, async (tx) => {
            await tx.query(`SELECT set_config('lock_timeout', '800ms', true)`);
            await tx.query('SELECT 1 FROM keyguard.lock_audit_head($1)', [chain.origin]);
          }),
        dataDir: config.dataDir,
        isStopping: () => isStopping,
      }),
      verifier,
      enrollment,
      rotation,
      proxy,
      authenticate: authenticated,
      linkPage: linkPage(),
      controlPlane: operationRouter([...operations, ...openApiOperations(operations, { origin: origins[0] })], {
        authenticate: authenticated,
        demandStepUp: stepUp,
        readJson,
        idempotency,
        cursors: boundCursors(keys.hashToken),
        origins,
      }),
      onSeen: (deviceId, ip) => seen.note(deviceId, ip),
      onRefused: ({ kind, entry, isOfNothing }) => recordRefusal(kind, entry, isOfNothing),
      onFault,
    }),
    (ip) => unknown.count(`malformed_request ${ipBucket(ip)}`, { code: 'malformed_request' }, ip),
  );

  const every = (ms: number, work: () => Promise<unknown>): NodeJS.Timeout =>
    setInterval(() => {
      work().catch(onFault);
    }, ms);
  const reviews = setInterval(() => proxy.review(), REVIEW_EVERY_MS);
  const timers = [every(PURGE_EVERY_MS, () => nonces.purge()), every(PURGE_EVERY_MS, () => idempotency.purge()), every(PURGE_EVERY_MS, () => people.purge()), every(FLUSH_EVERY_MS, () => seen.flush())];
  timers.push(every(FLUSH_EVERY_MS, () => uses.flush()), every(FLUSH_EVERY_MS, () => apiKeys.endDue()));
  const projection = usageProjection(sql, { deploymentId: keys.deploymentId, rowMacKey: keys.rowMacKey });
  timers.push(every(USAGE_EVERY_MS, () => projection.tick()));
  timers.push(every(PURGE_EVERY_MS, () => settleLost(sql, audit, Date.now() - LOST_CALL_MS)), every(PURGE_EVERY_MS, () => purgeWindows(sql, Date.now() - WINDOWS_KEPT_MS)));
  timers.push(every(CHECKPOINTS_EVERY_MS, () => checkpoints.tick()), every(MAC_KEYS_EVERY_MS, () => macRotation.tick()), every(FLUSH_EVERY_MS, () => unknown.flush()));

  say(`KeyGuard is at ${origins[0]}, with its data in ${database.embedded ? config.dataDir : 'PostgreSQL'}${redis === null ? '' : ', and its nonces and limits in Redis'}.`);
  for (const notice of config.notices) say(notice);
  if (config.publicOrigin === null && !['127.0.0.1', 'localhost', '::1'].includes(config.host)) {
    say(`It listens on ${config.host}, and accepts ${origins.join(' and ')} only: set KEYGUARD_PUBLIC_URL to the address that others use.`);
  }
  if (isDemo) {
    say(`No ${demonstrated.keyVariable}: calls are answered by the built-in demo upstream, which is no language model.`);
    say(`To use the real one, run  ${COMMAND} keys add ${demonstrated.name}  or start with ${demonstrated.keyVariable} set.`);
  }
  if (config.administrator !== null && (await setup.createFromEnvironment(config.administrator))) {
    say(`The administrator ${config.administrator.email} was created from the environment.`);
  }
  if (!(await setup.isDone())) {
    const code = await setup.issueCode();
    say(['', 'There is no administrator yet. In another terminal, run', '', `    ${COMMAND} setup${port === 3000 ? '' : ` --url ${origins[0]}`}`, '', `and give it this one-time setup code:  ${code}`, ''].join('\n'));
  }
  log.info({ origin: origins[0] }, 'ready');

  return {
    async stop() {
      // From here on /readyz says no, and the proxy takes no new calls; whoever asks is still told so.
      isStopping = true;
      for (const timer of timers) clearInterval(timer);
      // What still runs is ended for a device that is shut meanwhile, as ever.
      await proxy.drain(DRAIN_MS);
      clearInterval(reviews);
      const closed = new Promise<void>((resolve) => {
        server.close(() => resolve());
      });
      server.closeIdleConnections();
      const late = setTimeout(() => server.closeAllConnections(), STOP_MS - DRAIN_MS);
      await closed;
      clearTimeout(late);
      proxy.close();
      await demo?.close();
      await seen.flush().catch(onFault);
      await uses.flush().catch(onFault);
      await kekRotation.stop();
      await unknown.flush(true).catch(onFault);
      await checkpoints.sign().catch(onFault);
      watch.stop();
      settings.stop();
      redis?.close();
      await rootLock?.release();
      await database.close();
    },
  };
}
