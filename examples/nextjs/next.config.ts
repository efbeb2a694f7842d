import type { NextConfig } from 'next';

type External = (context: { request?: string }, done: (error: null, external?: string) => void) => void;

const config: NextConfig = {
  // The workspace checks types, for all examples at once.
  typescript: { ignoreBuildErrors: true },
  // Only inside this workspace: Node loads the packages from their sources. Installed from npm they need no setting.
  webpack(options: { externals: External[] }) {
    options.externals.push(({ request = '' }, done) => (request.startsWith('@keyguard/') ? done(null, `module ${request}`) : done(null)));
    return options;
  },
};

export default config;
